"""The journal of an attempt: which stretches of the output are finished, with their digests."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

JOURNAL_FILE = "journal.jsonl"
TENSORS_FOLDER = "tensors"


@dataclass(frozen=True)
class Entry:
    """A finished stretch of a tensor: entries `start` to `stop`, the digest of their bytes.

    `inner_products` are those of the task vectors there, the upper triangle; empty where they are
    not gathered.
    """

    name: str
    start: int
    stop: int
    digest: str
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[Mapping[str, str], ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    inner_products: Sequence[Sequence[float]] = ()

    @property
    def key(self) -> tuple[str, int, int]:
        """Name, start and stop."""
        return self.name, self.start, self.stop


class Journal:
    """An append-only file of entries; each is written after the bytes that it is about.

    Its first line is its `origin`: torch's version, the device, and so on.
    """

    def __init__(self, path: Path, origin: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._append({"origin": dict(origin)})

    def add(self, entry: Entry) -> None:
        """Append one entry in a single write."""
        self._append(asdict(entry))

    def _append(self, document: Mapping[str, Any]) -> None:
        line = json.dumps(document, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            os.write(self._descriptor, line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_journal(path: Path, origin: Mapping[str, str]) -> Iterator[Entry]:
    """Yield the entries that are whole, if the journal's origin is this one.

    A last line that a crash cut short is ignored.
    """
    if not path.is_file():
        return
    first, *lines = path.read_bytes().splitlines(keepends=True) or [b""]
    if first != json.dumps({"origin": dict(origin)}, separators=(",", ":")).encode() + b"\n":
        return
    for line in lines:
        if not line.endswith(b"\n"):
            return
        try:
            found = json.loads(line)
            yield Entry(**found | {"warnings": tuple(found["warnings"])})
        except (ValueError, KeyError, TypeError):
            return
