"""Reads a dataset's manifest: every line checked, every fault named by file and line."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.contract.errors import (
    InvalidManifestError,
    Problem,
    SourceNotFoundError,
    SourceTooLargeError,
)
from app.contract.evaluation import Utterance, language_code

MAX_MANIFEST_BYTES = 256 * 1024**2
MAX_PROBLEMS = 10


@dataclass(frozen=True)
class Manifest:
    """A dataset's utterances in their order; audio paths are relative to `folder`."""

    folder: Path
    utterances: tuple[Utterance, ...]
    manifest_sha256: str


class _LineError(ValueError):
    """What is wrong with one line, without its place."""


def read_manifest(path: Path, *, label: str) -> Manifest:
    """Return the manifest in a file of JSON lines, as NeMo writes them.

    `label` is what messages call the dataset. Audio is not looked at. Raises SourceNotFoundError
    without a file, SourceTooLargeError over 256 MB, and InvalidManifestError that lists the first
    ten faults with their lines.
    """
    parse = _parser_for(path, label)
    content = _read(path, label)
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for number, line in _lines(content):
        try:
            utterances.append(parse(line, len(utterances)))
        except _LineError as error:
            place = f"{path.name}, line {number}"
            problems.append(Problem(f"{place}: {error}"))
    if problems:
        raise _refusal(label, problems)
    if not utterances:
        raise InvalidManifestError(
            f"{label}: {path.name} holds no utterances; write one JSON object a line."
        )
    return Manifest(path.parent, tuple(utterances), hashlib.sha256(content).hexdigest())


def audio_path(manifest: Manifest, utterance: Utterance) -> Path:
    """Return where the utterance's audio should be; a relative path starts at the manifest."""
    return manifest.folder / utterance.audio


def _parser_for(path: Path, label: str) -> Callable[[bytes, int], Utterance]:
    # AudioFolder (metadata.csv) and Kaldi folders get their parsers here.
    if path.is_dir() or path.suffix.lower() in {".csv", ".scp", ".tsv"}:
        raise InvalidManifestError(
            f"{label}: {path.name} is not a file of JSON lines; give a manifest with one object "
            'a line, each with "audio_filepath" and "text".'
        )
    return _parse_nemo


def _read(path: Path, label: str) -> bytes:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise SourceTooLargeError(
                f"{label}: {path.name} has more than {MAX_MANIFEST_BYTES // 1024**2} MB; split it."
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise SourceNotFoundError(f"{label}: there is no manifest {path}.") from None
    except OSError as error:
        raise SourceNotFoundError(f"{label}: {path} cannot be read: {error.strerror}.") from None


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    body = content.removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _refusal(label: str, problems: list[Problem]) -> InvalidManifestError:
    shown = problems[:MAX_PROBLEMS]
    rest = len(problems) - 1
    more = f" ({rest} more lines are wrong too)" if rest else ""
    return InvalidManifestError(f"{label}: {problems[0].message}{more}", problems=shown)


def _parse_nemo(line: bytes, index: int) -> Utterance:
    entry = _object(line)
    audio = _text(entry, "audio_filepath")
    reference = _text(entry, "text")
    if audio is None or reference is None:
        missing = [name for name in ("audio_filepath", "text") if entry.get(name) is None]
        raise _LineError(f"{' and '.join(missing)} missing; each line needs both")
    if not audio:
        raise _LineError("audio_filepath is empty")
    return Utterance(
        index=index,
        audio=audio,
        reference=reference,
        duration_seconds=_seconds(entry, "duration"),
        offset_seconds=_seconds(entry, "offset"),
        language=_language(entry),
        speaker=_label(entry, "speaker"),
        session=_label(entry, "session"),
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _LineError(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply or a number too long")
        raise _LineError(f"not JSON: {reason}") from None
    if not isinstance(entry, dict):
        raise _LineError(f"a JSON object is needed, this is {_kind(entry)}")
    return entry


def _text(entry: dict[str, Any], name: str) -> str | None:
    value = entry.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _LineError(f"{name} must be a string, not {_kind(value)}")
    # Neither can be stored: databases and file systems refuse them much later.
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise _LineError(f"{name} holds a NUL or half of a surrogate pair")
    return value


def _seconds(entry: dict[str, Any], name: str) -> float | None:
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _LineError(f"{name} must be a number of seconds, not {_kind(value)}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds) or seconds < 0:
        raise _LineError(f"{name} must be a number of seconds from 0 up")
    return seconds


def _language(entry: dict[str, Any]) -> str | None:
    value = _text(entry, "language") or _text(entry, "lang")
    try:
        return str(language_code(value)) if value else None
    except ValueError as error:
        raise _LineError(f"language: {error}") from None


def _label(entry: dict[str, Any], name: str) -> str | None:
    value = entry.get(name)
    # Speaker and session numbers are as common as names.
    return str(value) if isinstance(value, int) else _text(entry, name)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")
