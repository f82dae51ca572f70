"""Reads datasets of the library `datasets`: parquet, on this machine or the hub, and arrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from io import FileIO
from typing import Any

from app.contract.errors import InvalidManifestError
from app.sources import arrow_tables
from app.sources.arrow_tables import TableFile, local_stream
from app.sources.dataset_splits import choose, pick
from app.sources.manifest_place import Place

NOT_CHECKED = (
    "parquet and arrow need pyarrow, which is not installed here (pip install 'afluente[worker]')"
)


class NoArrowError(InvalidManifestError):
    """pyarrow is not installed in this process; a worker can read the set."""


def read_parquet(place: Place) -> None:
    """Read a parquet file, or the folder's files of the config and split that are asked for."""
    if place.file:
        names = [place.file]
    else:
        readme = place.read("README.md") if place.has("README.md") else b""
        place.digests.clear()
        names = choose(place.label, place.walk(".parquet"), place.query, readme)
    read_tables(place, (_local(place, name) for name in names))


def read_arrow(place: Place) -> None:
    """Read what `save_to_disk` wrote: a dataset, or the split of several that is asked for."""
    folder = ""
    if not place.file and place.has("dataset_dict.json"):
        splits = {str(name): f"{name}/" for name in _list(place, "dataset_dict.json", "splits")}
        folder = pick(place.label, "split", splits, place.query.split)
    state = f"{folder}state.json"
    files = _list(place, state, "_data_files")
    if _state(place, state).get("_indices_data_files"):
        raise InvalidManifestError(
            f"{place.label}: the dataset has an indices mapping; call flatten_indices() before "
            "save_to_disk"
        )
    place.digests.clear()
    names = [f"{folder}{one['filename']}" for one in files if isinstance(one, dict)]
    read_tables(place, (_local(place, name) for name in names))


def read_tables(place: Place, files: Iterable[TableFile]) -> None:
    """Add the rows of the files up to the query's limit; count those that are left unread."""
    if not arrow_tables.is_available():
        raise NoArrowError(f"{place.label}: {NOT_CHECKED}")
    limit = place.query.limit
    for file in files:
        if limit is not None and len(place.reading.utterances) >= limit:
            break
        place.unread += arrow_tables.read_rows(
            file, place.query, place.reading, goes_on=place.goes_on
        )


def _local(place: Place, name: str) -> TableFile:
    return TableFile(name, partial(_open, partial(place.open, name)), place.folder / name)


def _open(open_file: Callable[[], FileIO]) -> Any:
    with open_file() as handle:
        return local_stream(handle)


def _state(place: Place, name: str) -> dict[str, Any]:
    try:
        document = json.loads(place.read(name))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidManifestError(f"{place.label}: {name} is not JSON of save_to_disk")
    return document


def _list(place: Place, name: str, key: str) -> list[Any]:
    found = _state(place, name).get(key)
    if not isinstance(found, list):
        raise InvalidManifestError(f"{place.label}: {name} has no list {key}")
    return found
