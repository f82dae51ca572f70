"""Parses manifests of one file: JSON lines (NeMo's, Lhotse's, AudioFolder's), CSV and TSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from app.contract.evaluation import Utterance
from app.sources.dataset_queries import DatasetQuery
from app.sources.manifest_columns import AUDIO_COLUMNS, Columns
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
from app.sources.manifest_lhotse import is_lhotse, utterances_of_cut
from app.sources.manifest_tarred import Tarred

_SEPARATORS = ",;\t|"


def parse_json_lines(
    name: str,
    content: bytes,
    reading: Reading,
    query: DatasetQuery | None = None,
    tarred: Tarred | None = None,
) -> None:
    """Read one object a line: NeMo's with `audio_filepath`, Lhotse's cuts, or AudioFolder's.

    `tarred` finds the audio of lines that name a file in a tar.
    """
    query = query or DatasetQuery()
    columns: Columns | None = None
    for number, line in lines_of(content):
        with reading.at(name, number):
            entry = _object(line)
            count = len(reading.utterances)
            if is_lhotse(entry):
                reading.utterances += utterances_of_cut(entry, count)
                continue
            is_nemo = "audio_filepath" in entry and not (query.audio or query.text)
            if is_nemo or not any(name in entry for name in (query.audio, *AUDIO_COLUMNS)):
                utterance = _from_nemo(entry, count)
            else:
                known = (key for key in entry if entry[key] is not None)
                columns = columns or Columns.of(known, query)
                utterance = columns.utterance(entry, count)
            if tarred is not None:
                utterance = tarred.find(utterance, entry.get("shard_id"), reading)
            reading.utterances.append(utterance)


def parse_csv(
    name: str,
    content: bytes,
    reading: Reading,
    query: DatasetQuery | None = None,
    located: Callable[[str], str] = lambda audio: audio,
) -> None:
    """Read a table: a header, then one file a row, parted by commas, semicolons, tabs or bars.

    `located` returns the path of what the audio's column holds.
    """
    body = content.removeprefix(b"\xef\xbb\xbf")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        with reading.at(name, body.count(b"\n", 0, error.start) + 1):
            raise EntryError("not UTF-8") from None
        return
    head = text.lstrip("\r\n").partition("\n")[0]
    separator = max(_SEPARATORS, key=head.count)
    # Tables parted by tabs or bars (Common Voice's) have quotes that belong to the text.
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if separator in ",;" else csv.QUOTE_NONE
    rows = csv.reader(
        io.StringIO(text, newline=""), strict=True, delimiter=separator, quoting=quoting
    )
    header: list[str] = []
    columns: Columns | None = None
    try:
        for row in rows:
            # A row may span lines; errors give the last one.
            with reading.at(name, rows.line_num):
                if row and not header:
                    header = [cell.strip() for cell in row]
                    columns = Columns.of(header, query or DatasetQuery())
                elif row and columns:
                    entry = _cells(header, row, columns.text)
                    utterance = columns.utterance(entry, len(reading.utterances))
                    audio = located(utterance.audio)
                    reading.utterances.append(utterance.model_copy(update={"audio": audio}))
    except csv.Error as error:
        with reading.at(name, rows.line_num):
            raise EntryError(f"not CSV: {error}") from None


def _cells(header: list[str], row: list[str], text: str) -> dict[str, str]:
    if len(row) != len(header):
        raise EntryError(f"{len(row)} fields where the header has {len(header)}")
    cells = dict(zip(header, row, strict=True))
    # An empty cell is no value, except for the text: nothing may have been said.
    return {name: cell for name, cell in cells.items() if cell or name == text}


def _from_nemo(entry: Mapping[str, Any], index: int) -> Utterance:
    audio, reference = path_of(entry, "audio_filepath"), text_of(entry, "text")
    if audio is None or reference is None:
        missing = [name for name in ("audio_filepath", "text") if entry.get(name) is None]
        raise EntryError(f"{' and '.join(missing)} missing; each line needs both")
    if not audio:
        raise EntryError("audio_filepath is empty")
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
