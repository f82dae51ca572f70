"""Checks before a merge that its datasets can be evaluated: audio and languages."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from time import monotonic

from app.contract.errors import InvalidManifestError, Problem, SourceError
from app.sources.audio_files import HEAD_BYTES, READABLE, container_of
from app.sources.audio_sources import AudioSource
from app.sources.local import Roots, allowed_path
from app.sources.manifest_fields import MAX_PROBLEMS
from app.sources.manifests import Manifest

# The check stops after this; the decoder reports the files that it did not reach.
_MOST_SECONDS = 5.0
# For this many files in one folder, listing it is cheaper.
_LIST_FROM = 64
# Several files of a suffix are tried: one may be damaged.
_TRIED, _MOST_KINDS = 5, 32
_SHOWN, _SHOWN_LANGUAGES = 3, 12


def check_audio(manifest: Manifest, label: str, roots: Roots = None) -> list[str]:
    """Return warnings about audio that is missing or cannot be decoded.

    Every file must exist; the first bytes of a few of each suffix are read. `label` names the
    dataset in messages. Raises InvalidManifestError if nothing could be decoded.
    """
    if manifest.remote:
        return []
    members = manifest.members
    wanted = list(dict.fromkeys(utterance.audio for utterance in manifest.utterances))
    missing = _missing(manifest.folder, (one for one in wanted if one not in members), roots)
    if len(missing) == len(wanted):
        problems = [Problem(f"{_short(audio)}: there is no such file") for audio in missing[:10]]
        raise InvalidManifestError(
            f"{label}: none of its audio is there, in a folder that may be read: {_some(missing)}. "
            "Relative paths start at the manifest.",
            problems=problems,
        )
    absent = set(missing)
    present = {
        audio: members.get(audio) or AudioSource(manifest.folder / audio)
        for audio in wanted
        if audio not in absent
    }
    reasons, readable = _look_inside(present, roots)
    if reasons and not readable:
        raise InvalidManifestError(
            f"{label}: none of its audio can be decoded: {'; '.join(reasons)}",
            problems=[Problem(reason) for reason in reasons],
        )
    if missing:
        count = f"{len(missing):,} of {len(wanted):,} audio files are not there"
        reasons = [f"{count} and will be skipped: {_some(missing)}", *reasons]
    return [f"{label}: {reason}" for reason in reasons]


def check_languages(manifest: Manifest, label: str, known: Set[str]) -> None:
    """Raise InvalidManifestError for lines of languages that the checkpoint does not know."""
    problems = [
        Problem(f"utterance {utterance.index + 1} ({_short(utterance.audio)}): {reason}")
        for utterance in manifest.utterances
        if utterance.language and (reason := unknown_language(utterance.language, known))
    ]
    if problems:
        rest = len(problems) - 1
        more = f" ({rest:,} more likewise)" if rest else ""
        raise InvalidManifestError(
            f"{label}: {problems[0].message}{more}", problems=problems[:MAX_PROBLEMS]
        )


def unknown_language(code: str, known: Set[str]) -> str | None:
    """Return why the checkpoint cannot decode a language, or None if it can."""
    if code in known:
        return None
    shown = ", ".join(sorted(known)) if len(known) <= _SHOWN_LANGUAGES else "see Whisper's list"
    return f'the checkpoint does not know the language "{code}" ({shown})'


def _missing(base: Path, wanted: Iterable[str], roots: Roots) -> list[str]:
    """Return those that do not exist or lie outside the roots, in their order."""
    wanted = list(wanted)
    folders: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for audio in wanted:
        folder, name = os.path.split(base / audio)
        folders[folder].append((name, audio))
    end = monotonic() + _MOST_SECONDS
    missing: set[str] = set()
    for folder, files in folders.items():
        if monotonic() > end:
            break
        there = _names(folder, [name for name, _ in files], roots)
        missing |= {audio for name, audio in files if name not in there}
    return [audio for audio in wanted if audio in missing]


def _names(folder: str, wanted: Sequence[str], roots: Roots) -> set[str]:
    """Return the names that the folder has: the wanted ones among them, maybe others too."""
    try:
        real = allowed_path(Path(folder), roots, folder)
        if len(wanted) < _LIST_FROM:
            return {name for name in wanted if os.path.lexists(real / name)}
        with os.scandir(real) as entries:
            return {entry.name for entry in entries}
    except (SourceError, OSError):
        return set()


def _look_inside(present: Mapping[str, AudioSource], roots: Roots) -> tuple[list[str], bool]:
    """Return why files of some suffixes cannot be decoded, and whether any suffix can."""
    kinds: dict[str, list[str]] = {}
    for audio, source in present.items():
        suffix = source.path.suffix.lower()
        if suffix in kinds or len(kinds) < _MOST_KINDS:
            tried = kinds.setdefault(suffix, [])
            if len(tried) < _TRIED:
                tried.append(audio)
    reasons, readable = [], False
    for suffix, tried in kinds.items():
        found = [_fault(present[audio], audio, roots) for audio in tried]
        if None in found:
            readable = True
        else:
            called = f"*{suffix}" if suffix else "names without a suffix"
            reasons.append(f"{called} cannot be decoded ({found[0]})")
    return reasons, readable


def _fault(source: AudioSource, audio: str, roots: Roots) -> str | None:
    try:
        with source.open(roots) as handle:
            head = handle.read(HEAD_BYTES)
    except SourceError as error:
        return f"{_short(audio)}: {error.message.removeprefix(f'{source.path.name}: ')}"
    except OSError as error:
        return f"{_short(audio)} cannot be read: {error.strerror}"
    if not head:
        return f"{_short(audio)} is empty"
    return None if container_of(head) else f"{_short(audio)} is not {READABLE}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(_short(name) for name in names[:_SHOWN]) + more


def _short(name: str) -> str:
    return name if len(name) <= 120 else f"{name[:57]}...{name[-60:]}"
