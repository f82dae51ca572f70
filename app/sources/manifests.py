"""Reads a dataset's manifest in any form; each fault is reported with file and line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from app.contract.errors import (
    InvalidManifestError,
    SourceNotFoundError,
    SourceTooLargeError,
)
from app.contract.evaluation import Utterance
from app.sources import manifest_kaldi as kaldi
from app.sources.local import Roots, open_regular
from app.sources.manifest_fields import Reading
from app.sources.manifest_tables import parse_csv, parse_json_lines

MAX_MANIFEST_BYTES = 256 * 1024**2
MAX_LINES = 1_000_000
# The manifests that are looked for in a folder.
IN_FOLDERS = ("wav.scp", "metadata.jsonl", "metadata.csv", "manifest.jsonl")


@dataclass(frozen=True)
class Manifest:
    """A dataset's utterances in their order; audio paths are relative to `folder`."""

    folder: Path
    utterances: tuple[Utterance, ...]
    manifest_sha256: str


def read_manifest(path: Path, *, label: str, roots: Roots = None) -> Manifest:
    """Return the manifest at a path: a file, or the folder that it lies in.

    JSON lines (NeMo's, or AudioFolder's metadata.jsonl), AudioFolder's metadata.csv, or a Kaldi
    data folder (or its wav.scp). `label` names the dataset in messages. All that is read must
    lie under `roots`, links followed (None: anywhere). Audio is not looked at.

    Raises:
        SourceNotFoundError: there is no such file.
        SourceNotAllowedError: a file is not a regular one, or outside the roots.
        SourceTooLargeError: a file has over 256 MB, or a million lines.
        InvalidManifestError: lists the first ten faults with their lines.

    """
    file = _in_folder(path, label) if os.path.isdir(path) else path  # noqa: PTH112 - never raises
    reading = Reading()
    if file.name in kaldi.FILES:
        contents = _read_kaldi(file.parent, label, roots)
        kaldi.parse_kaldi(contents, reading)
    else:
        contents = {file.name: _read(file, label, roots)}
        parse = parse_csv if _is_csv(file, label) else parse_json_lines
        parse(file.name, contents[file.name], reading)
    if reading.problems:
        raise _refusal(label, reading)
    if not reading.utterances:
        raise InvalidManifestError(
            f"{label}: {file.name} holds no utterances; write one on each line."
        )
    return Manifest(file.parent, tuple(reading.utterances), _digest(contents))


def audio_path(manifest: Manifest, utterance: Utterance) -> Path:
    """Return where the utterance's audio should be; a relative path starts at the manifest."""
    return manifest.folder / utterance.audio


def _in_folder(folder: Path, label: str) -> Path:
    found = [name for name in IN_FOLDERS if os.path.lexists(folder / name)]
    if not found:
        raise InvalidManifestError(
            f"{label}: the folder holds no manifest; there must be one of {', '.join(IN_FOLDERS)}, "
            "or give the manifest's own path."
        )
    if len(found) > 1:
        raise InvalidManifestError(
            f"{label}: the folder holds {' and '.join(found)}; give the path of the one to use."
        )
    return folder / found[0]


def _is_csv(file: Path, label: str) -> bool:
    suffix = file.suffix.lower()
    if suffix in {".scp", ".tsv", ".parquet"}:
        raise InvalidManifestError(
            f"{label}: {file.name} is no manifest; give JSON lines (audio_filepath and text, or "
            "file_name and text), AudioFolder's metadata.csv, or a Kaldi folder with its wav.scp."
        )
    return suffix == ".csv"


def _read_kaldi(folder: Path, label: str, roots: Roots) -> dict[str, bytes]:
    there = [name for name in kaldi.OPTIONAL if os.path.lexists(folder / name)]
    return {name: _read(folder / name, label, roots) for name in (*kaldi.NEEDED, *there)}


def _read(path: Path, label: str, roots: Roots) -> bytes:
    place = label if label.endswith(path.name) else f"{label}: {path.name}"
    try:
        with BufferedReader(open_regular(path, roots, place)) as stream:
            # The limit holds for what is read: the file may grow meanwhile.
            content = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise SourceNotFoundError(f"{place} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_MANIFEST_BYTES:
        raise SourceTooLargeError(
            f"{place} has more than {MAX_MANIFEST_BYTES // 1024**2} MB; split it."
        )
    if max(content.count(b"\n"), content.count(b"\r")) > MAX_LINES:
        raise SourceTooLargeError(f"{place} has more than {MAX_LINES:,} lines; split it.")
    return content


def _digest(contents: Mapping[str, bytes]) -> str:
    """Return the sha256 of the one file, or of the names and digests of several."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    if len(digests) == 1:
        return next(iter(digests.values()))
    listed = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(listed.encode()).hexdigest()


def _refusal(label: str, reading: Reading) -> InvalidManifestError:
    rest = reading.faults - 1
    more = f" ({rest} more lines are wrong too)" if rest else ""
    message = f"{label}: {reading.problems[0].message}{more}"
    return InvalidManifestError(message, problems=reading.problems)
