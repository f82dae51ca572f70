"""Reads parquet and arrow files: texts without the audio, and the audio of one row.

pyarrow comes with workers; the API does without it, and then leaves these sets to the workers.
"""

from __future__ import annotations

import json
import os
import posixpath
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from app.contract.errors import InvalidManifestError, SourceNotFoundError, SourceTooLargeError
from app.sources.audio_sources import AudioSource, TableCell
from app.sources.checkpoint import Signature
from app.sources.dataset_queries import DatasetQuery
from app.sources.local import in_proc
from app.sources.manifest_columns import Columns
from app.sources.manifest_fields import MAX_PATH, EntryError, Reading

MAX_ROWS = 1_000_000
_ROWS_AT_ONCE = 1_000
# Parquet is read in pieces of this size, whatever a row group's or a page's.
_BUFFER_BYTES = 1 << 18
_MOST_OPEN = 2


@dataclass(frozen=True)
class TableFile:
    """A parquet or arrow file: its name for messages, its bytes, and its place if it is local."""

    name: str
    open: Callable[[], Any]
    path: Path | None = None
    downloaded: bool = False


class _Table(Protocol):
    """A file's rows."""

    schema: Any
    rows: int

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """Yield the columns, of which a part of a struct is named `struct.part`."""
        ...

    def cell(self, row: int, column: str) -> Any:
        """Return one value."""
        ...

    def lacks(self, column: str) -> bool:
        """Return whether a column certainly has no value in any row."""
        ...


def is_available() -> bool:
    """Return whether pyarrow is installed."""
    from importlib.util import find_spec

    return find_spec("pyarrow") is not None


def read_rows(
    file: TableFile, query: DatasetQuery, reading: Reading, *, goes_on: Callable[[], bool]
) -> int:
    """Add the utterances of a file's rows, and return the number of rows left unread.

    Rows are read until `goes_on` returns false, checked now and then, or up to the query's limit.
    Raises InvalidManifestError if the file is damaged.
    """
    with _faults(file.name):
        table = (_Arrow if file.name.endswith(".arrow") else _Parquet)(file.open())
        if len(reading.utterances) + table.rows > MAX_ROWS:
            raise SourceTooLargeError(f"{file.name}: over {MAX_ROWS:,} rows; choose a smaller part")
        with reading.within(file.name):
            columns = Columns.of(table.schema.names, query)
            audio = _Audio.of(table, columns.audio)
            if audio.cells is None and (file.downloaded or file.path is None):
                raise EntryError(
                    f"{columns.audio} holds paths only, and the hub has no files there"
                )
            return _read_rows(file, table, columns, audio, query.limit, reading, goes_on)
    return 0


def read_cell(handle: FileIO, row: int, column: str) -> bytes:
    """Return the bytes in a row of an open file; SourceNotFoundError if there are none."""
    with _LOCK:
        try:
            value = _opened(handle).cell(row, column)
        except _errors() as error:
            raise SourceNotFoundError(f"row {row} cannot be read ({_reason(error)})") from None
    if not isinstance(value, bytes):
        raise SourceNotFoundError(f"row {row} has no audio in {column}")
    return value


@dataclass(frozen=True)
class _Audio:
    """Where a table's audio is: the column of its bytes, or of paths."""

    cells: str | None
    paths: str | None

    @classmethod
    def of(cls, table: _Table, name: str) -> _Audio:
        import pyarrow as pa

        found = table.schema.field(name).type
        if pa.types.is_binary(found) or pa.types.is_large_binary(found):
            return cls(name, None)
        if pa.types.is_string(found) or pa.types.is_large_string(found):
            return cls(None, name)
        parts = {found.field(i).name for i in range(found.num_fields)} if _is_struct(found) else {}
        if "bytes" not in parts and "path" not in parts:
            raise EntryError(
                f"{name} holds {str(found)[:80]}, no encoded audio and no path; save the dataset "
                f'after cast_column("{name}", Audio(decode=False))'
            )
        cells = f"{name}.bytes" if "bytes" in parts else None
        paths = f"{name}.path" if "path" in parts else None
        if cells and paths and table.lacks(cells):
            cells = None
        return cls(cells, paths)


def _read_rows(
    file: TableFile,
    table: _Table,
    columns: Columns,
    audio: _Audio,
    limit: int | None,
    reading: Reading,
    goes_on: Callable[[], bool],
) -> int:
    names = _class_names(table.schema)
    wanted = [name for name in dict.fromkeys(columns.texts) if name in table.schema.names]
    row = 0
    for batch in table.batches([*wanted, *filter(None, [audio.paths])]):
        for entry in batch.to_pylist():
            if limit is not None and len(reading.utterances) >= limit:
                return 0
            with reading.within(f"{file.name}, row {row}"):
                path = _path(entry, columns.audio)
                _name_classes(entry, names)
                if audio.cells is None:
                    place = path and posixpath.join(posixpath.dirname(file.name), path)
                    if not place:
                        raise EntryError(f"{columns.audio} has neither bytes nor a path")
                else:
                    place = f"{file.name}::{row}" + (f" ({path})" if path else "")
                    if file.path is not None:
                        cell = TableCell(row, audio.cells)
                        reading.members[place] = AudioSource(file.path, cell, file.downloaded)
                utterance = columns.utterance(entry, len(reading.utterances), place)
                reading.utterances.append(utterance)
            row += 1
        if not goes_on():
            return table.rows - row
    return 0


def _path(entry: Mapping[str, Any], column: str) -> str | None:
    value = entry.get(column)
    path = value.get("path") if isinstance(value, dict) else value
    return path[:MAX_PATH] if isinstance(path, str) else None


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of the classes that columns number (`ClassLabel` of `datasets`)."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in described.items()
            if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _name_classes(entry: dict[str, Any], names: Mapping[str, list[str]]) -> None:
    for column in entry.keys() & names.keys():
        number, known = entry[column], names[column]
        if isinstance(number, int) and 0 <= number < len(known):
            entry[column] = known[number]


class _Parquet:
    """A parquet file, read page by page.

    Cells are read one after the other; when the rows go back, their row group is read again.
    """

    def __init__(self, stream: Any) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        metadata = self._file.metadata
        self.schema, self.rows = self._file.schema_arrow, metadata.num_rows
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        self._starts = [0, *accumulate(group.num_rows for group in groups)]
        self._place: tuple[int, str] | None = None
        self._next = 0
        self._cells: Iterator[Any] = iter(())

    def batches(self, columns: list[str]) -> Iterator[Any]:
        yield from self._file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False)

    def cell(self, row: int, column: str) -> Any:
        group = bisect_right(self._starts, row) - 1
        if self._place != (group, column) or row < self._next:
            self._place, self._next = (group, column), self._starts[group]
            self._cells = iter(())  # frees the last one's page first
            self._cells = self._file.iter_batches(
                1, row_groups=[group], columns=[column], use_threads=False
            )
        try:
            for batch in self._cells:
                self._next += 1
                if self._next > row:
                    return _value(batch.column(0)[0])
        except BaseException:
            self._place = None
            raise
        return None

    def lacks(self, column: str) -> bool:
        metadata = self._file.metadata
        for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
            chunks = (group.column(index) for index in range(group.num_columns))
            chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
            known = chunk.statistics if chunk.is_stats_set else None
            if known is None or not known.has_null_count or known.null_count < chunk.num_values:
                return False
        return True


class _Arrow:
    """An arrow stream, as `save_to_disk` writes it; rows are read in place."""

    def __init__(self, stream: Any) -> None:
        import pyarrow as pa

        self._batches = list(pa.ipc.open_stream(stream))
        if not self._batches:
            raise ValueError("it holds no rows")
        self.schema = self._batches[0].schema
        self._starts = [0, *accumulate(batch.num_rows for batch in self._batches)]
        self.rows = self._starts[-1]

    def batches(self, columns: list[str]) -> Iterator[Any]:
        import pyarrow as pa

        names = [column.partition(".")[0] for column in columns]
        for batch in self._batches:
            parts = [_part(batch, column) for column in columns]
            arrays = [
                pa.StructArray.from_arrays([part], [column.partition(".")[2]])
                if "." in column and column not in self.schema.names
                else part
                for part, column in zip(parts, columns, strict=True)
            ]
            whole = pa.RecordBatch.from_arrays(arrays, names)
            for start in range(0, whole.num_rows, _ROWS_AT_ONCE):
                yield whole.slice(start, _ROWS_AT_ONCE)

    def cell(self, row: int, column: str) -> Any:
        index = bisect_right(self._starts, row) - 1
        return _part(self._batches[index], column)[row - self._starts[index]].as_py()

    def lacks(self, column: str) -> bool:
        return all(_part(one, column).null_count == one.num_rows for one in self._batches)


def _part(batch: Any, column: str) -> Any:
    if column in batch.schema.names:
        return batch.column(column)
    name, _, part = column.partition(".")
    struct = batch.column(name)
    return struct.flatten()[struct.type.get_field_index(part)]


def _value(scalar: Any) -> Any:
    value = scalar.as_py()
    return next(iter(value.values())) if isinstance(value, dict) else value


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def local_stream(handle: FileIO) -> Any:
    """Return what pyarrow reads an open file by, which stays usable when the handle is closed."""
    import pyarrow as pa

    path = in_proc(handle.fileno())
    # An arrow stream's rows are used where they are.
    return pa.OSFile(path) if _is_parquet(handle) else pa.memory_map(path)


def _is_parquet(handle: FileIO) -> bool:
    return os.pread(handle.fileno(), 4, 0) == b"PAR1"


_LOCK = threading.Lock()
_TABLES: OrderedDict[tuple[str, Signature], _Table] = OrderedDict()


def _opened(handle: FileIO) -> _Table:
    """Return the table of an open file; the last few are kept, with the place read last."""
    key = os.readlink(in_proc(handle.fileno())), Signature.of(os.fstat(handle.fileno()))  # noqa: PTH115
    if key not in _TABLES:
        kind = _Parquet if _is_parquet(handle) else _Arrow
        _TABLES[key] = kind(local_stream(handle))
        while len(_TABLES) > _MOST_OPEN:
            _TABLES.popitem(last=False)
    _TABLES.move_to_end(key)
    return _TABLES[key]


@contextmanager
def _faults(name: str) -> Iterator[None]:
    try:
        yield
    except _errors() as error:
        raise InvalidManifestError(
            f"{name} is damaged, or neither parquet nor an arrow stream ({_reason(error)})"
        ) from None


def _errors() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
