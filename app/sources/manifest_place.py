"""Reads the files of a manifest's folder, under limits, and keeps what was read."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader, FileIO
from pathlib import Path

from app.contract.errors import (
    InvalidManifestError,
    SourceNotFoundError,
    SourceTooLargeError,
)
from app.sources.dataset_queries import DatasetQuery
from app.sources.local import Roots, allowed_path, open_regular
from app.sources.manifest_fields import Reading

MAX_MANIFEST_BYTES = 256 * 1024**2
MAX_LINES = 1_000_000
_MOST_NAMES, _DEEPEST = 200_000, 5
_RANGE = re.compile(r"(?:\{|_OP_)(\d{1,6})\.\.(\d{1,6})(?:\}|_CL_)")
_MOST_FILES = 10_000


@dataclass
class Place:
    """A manifest's folder and the file in it (empty for the folder itself), and what is read.

    `label` names the dataset in messages. All that is read lies under `roots`.
    """

    folder: Path
    file: str
    label: str
    roots: Roots
    query: DatasetQuery
    reading: Reading = field(default_factory=Reading)
    digests: dict[str, str] = field(default_factory=dict)
    goes_on: Callable[[], bool] = lambda: True
    unread: int = 0

    def names(self, folder: str = "") -> list[str]:
        """Return the names in a folder, sorted; those of folders end with a slash."""
        return sorted(self._scan(folder))

    def walk(self, suffix: str | tuple[str, ...]) -> list[str]:
        """Return the files below the folder, a few levels deep, whose names end so, sorted."""
        found, folders, seen = [], [("", 0)], 0
        while folders:
            folder, depth = folders.pop()
            for name in self._scan(folder):
                seen += 1
                if seen > _MOST_NAMES:
                    raise SourceTooLargeError(
                        f"{self.label}: over {_MOST_NAMES:,} files; give the manifest's own path"
                    )
                if name.endswith("/") and depth < _DEEPEST and not name.startswith("."):
                    folders.append((f"{folder}{name}", depth + 1))
                elif name.endswith(suffix):
                    found.append(f"{folder}{name}")
        return sorted(found)

    def has(self, name: str) -> bool:
        """Return whether the folder has a file or folder of this name."""
        return os.path.lexists(self.folder / name)

    def open(self, name: str) -> FileIO:
        """Open a file; SourceError if it is not there or not allowed."""
        return open_regular(self.folder / name, self.roots, self.place_of(name))

    def place_of(self, name: str) -> str:
        """Return what messages call a file."""
        return self.label if self.label.endswith(name) else f"{self.label}: {name}"

    def read(self, name: str) -> bytes:
        """Return a text file's content, decompressed if it is gzip; its digest is kept."""
        place = self.place_of(name)
        try:
            with BufferedReader(self.open(name)) as stream:
                packed = name.endswith(".gz")
                source = gzip.GzipFile(fileobj=stream) if packed else stream
                # The limit holds for what is read: the file may grow meanwhile.
                content = source.read(MAX_MANIFEST_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidManifestError(f"{place} is damaged gzip ({error})") from None
        except OSError as error:
            raise SourceNotFoundError(f"{place} cannot be read: {error.strerror}.") from None
        if len(content) > MAX_MANIFEST_BYTES:
            raise SourceTooLargeError(
                f"{place} has more than {MAX_MANIFEST_BYTES // 1024**2} MB; split it."
            )
        if max(content.count(b"\n"), content.count(b"\r")) > MAX_LINES:
            raise SourceTooLargeError(f"{place} has more than {MAX_LINES:,} lines; split it.")
        self.digests[name] = hashlib.sha256(content).hexdigest()
        return content

    def _scan(self, folder: str) -> Iterator[str]:
        real = allowed_path(self.folder / folder, self.roots, self.label)
        try:
            with os.scandir(real) as entries:
                for entry in entries:
                    yield (
                        f"{entry.name}/" if entry.is_dir(follow_symlinks=not folder) else entry.name
                    )
        except OSError as error:
            raise SourceNotFoundError(
                f"{self.label}: the folder cannot be read ({error.strerror})"
            ) from None


def once(names: Iterable[str]) -> list[str]:
    """Return the names without compressed copies (`a.stm.gz`) of files that are among them."""
    listed = list(names)
    plain = set(listed)
    return [one for one in listed if not (one.endswith(".gz") and one[:-3] in plain)]


def expand(name: str) -> list[str]:
    """Return the names that a range stands for: `a_{0..2}.tar` or NeMo's `a__OP_0..2_CL_.tar`."""
    found = _RANGE.search(name)
    if not found:
        return [name]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MOST_FILES:
        raise InvalidManifestError(
            f"{name}: a range goes from a number to a larger one, up to {_MOST_FILES:,} files"
        )
    width = len(found[1])
    head, tail = name[: found.start()], name[found.end() :]
    return [f"{head}{number:0{width}}{tail}" for number in range(first, last + 1)]
