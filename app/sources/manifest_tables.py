"""Parses manifests of one file: NeMo's JSON lines, AudioFolder's JSON lines and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from app.contract.evaluation import Utterance
from app.sources.manifest_fields import (
    EntryError,
    Reading,
    channel_of,
    decoded,
    kind,
    label_of,
    language_of,
    lines_of,
    path_of,
    seconds_of,
    text_of,
)

# AudioFolder names the file's column and leaves the text's open: the first that the file has.
TEXT_COLUMNS = ("transcription", "text", "sentence", "normalized_text", "transcript")


def parse_json_lines(name: str, content: bytes, reading: Reading) -> None:
    """Read one object a line: `audio_filepath` makes it NeMo's, `file_name` AudioFolder's."""
    column: str | None = None
    for number, line in lines_of(content):
        with reading.at(name, number):
            entry = _object(line)
            if "file_name" in entry and "audio_filepath" not in entry:
                column = column or _text_column(key for key in entry if entry[key] is not None)
                utterance = _from_audio_folder(entry, column, len(reading.utterances))
            else:
                utterance = _from_nemo(entry, len(reading.utterances))
            reading.utterances.append(utterance)


def parse_csv(name: str, content: bytes, reading: Reading) -> None:
    """Read AudioFolder's metadata.csv: a header, then one file a row."""
    body = content.removeprefix(b"\xef\xbb\xbf")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        with reading.at(name, body.count(b"\n", 0, error.start) + 1):
            raise EntryError("not UTF-8") from None
        return
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    column = ""
    try:
        for row in rows:
            # A row may span lines; errors give the last one.
            with reading.at(name, rows.line_num):
                if row and not header:
                    header = [cell.strip() for cell in row]
                    column = _check_header(header)
                elif row and column:
                    utterance = _from_row(header, row, column, len(reading.utterances))
                    reading.utterances.append(utterance)
    except csv.Error as error:
        with reading.at(name, rows.line_num):
            raise EntryError(f"not CSV: {error}") from None


def _check_header(header: list[str]) -> str:
    """Return the text's column."""
    shown = ", ".join(header)[:200]
    if "file_name" not in header:
        raise EntryError(f"the header needs a column file_name, parted by commas; it has: {shown}")
    column = _text_column(header)
    twice = [name for name in ("file_name", column) if header.count(name) > 1]
    if twice:
        raise EntryError(f"the header has {twice[0]} twice")
    return column


def _text_column(names: Iterable[str]) -> str:
    known = set(names)
    column = next((name for name in TEXT_COLUMNS if name in known), None)
    if column is None:
        raise EntryError(f"no text; one of {', '.join(TEXT_COLUMNS)} must hold it")
    return column


def _from_row(header: list[str], row: list[str], column: str, index: int) -> Utterance:
    if len(row) != len(header):
        raise EntryError(f"{len(row)} fields where the header has {len(header)}")
    cells = dict(zip(header, row, strict=True))
    # An empty cell is no value, except for the text: nothing may have been said.
    entry = {name: cell for name, cell in cells.items() if cell or name == column}
    return _from_audio_folder(entry, column, index)


def _from_audio_folder(entry: Mapping[str, Any], column: str, index: int) -> Utterance:
    audio, reference = _required(entry, "file_name", column)
    # Each file is one whole utterance: a column `duration` may be of any unit and is not read.
    return Utterance(
        index=index,
        audio=audio,
        reference=reference,
        channel=channel_of(entry),
        language=language_of(entry),
        speaker=label_of(entry, "speaker") or label_of(entry, "speaker_id"),
        session=label_of(entry, "session"),
    )


def _from_nemo(entry: Mapping[str, Any], index: int) -> Utterance:
    audio, reference = _required(entry, "audio_filepath", "text")
    return Utterance(
        index=index,
        audio=audio,
        reference=reference,
        duration_seconds=seconds_of(entry, "duration"),
        offset_seconds=seconds_of(entry, "offset"),
        channel=channel_of(entry),
        language=language_of(entry),
        speaker=label_of(entry, "speaker"),
        session=label_of(entry, "session"),
    )


def _required(entry: Mapping[str, Any], audio_name: str, text_name: str) -> tuple[str, str]:
    audio, reference = path_of(entry, audio_name), text_of(entry, text_name)
    if audio is None or reference is None:
        missing = [name for name in (audio_name, text_name) if entry.get(name) is None]
        raise EntryError(f"{' and '.join(missing)} missing; each line needs both")
    if not audio:
        raise EntryError(f"{audio_name} is empty")
    return audio, reference


def _object(line: bytes) -> dict[str, Any]:
    text = decoded(line)
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply or a number too long")
        raise EntryError(f"not JSON: {reason}") from None
    if not isinstance(entry, dict):
        raise EntryError(f"a JSON object is needed, this is {kind(entry)}")
    return entry
