"""What is sent of published files: stretches of bytes and of files that stay open meanwhile."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from app.contract.errors import StorageError
from app.sources.checkpoint import Signature


@dataclass(frozen=True)
class OpenFile:
    """A file as it was when it was opened: deleting it does not cut who reads it."""

    name: str
    file: BinaryIO
    signature: Signature

    @classmethod
    def of(cls, path: Path) -> OpenFile:
        """Open a file; OSError if that cannot be."""
        file = path.open("rb", buffering=0)
        return cls(path.name, file, Signature.of(os.fstat(file.fileno())))

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`, which is within the file."""
        descriptor = self.file.fileno()
        content = bytearray()
        while chunk := os.pread(descriptor, stop - start - len(content), start + len(content)):
            content += chunk
        now = Signature.of(os.fstat(descriptor))
        # Deleting a name of the file changes its ctime, and nothing else.
        if (now.size, now.mtime_ns) != (self.signature.size, self.signature.mtime_ns):
            raise StorageError(f"{self.name} was changed while it was sent.")
        return bytes(content)


@dataclass(frozen=True)
class Part:
    """The bytes of a download from `start` up to `stop`."""

    of: Download
    start: int
    stop: int

    def read(self, start: int, stop: int) -> bytes:
        """Return the part's own bytes from `start` up to `stop`."""
        return self.of.read(self.start + start, self.start + stop)


@dataclass(frozen=True)
class Download:
    """Bytes to send under a strong ETag made of `sha256`; `close` closes its files."""

    name: str
    media_type: str
    sha256: str
    stretches: Sequence[bytes | OpenFile | Part]

    def close(self) -> None:
        """Close the files."""
        for stretch in self.stretches:
            if isinstance(stretch, OpenFile):
                stretch.file.close()
            elif isinstance(stretch, Part):
                stretch.of.close()

    @property
    def size(self) -> int:
        """The bytes in all."""
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`, or to the end if that is sooner."""
        parts = []
        index = bisect_right(self._ends, start)
        while index < len(self.stretches) and start < stop:
            stretch, end = self.stretches[index], self._ends[index]
            begin = end - _length(stretch)
            first, last = start - begin, min(stop, end) - begin
            parts.append(
                stretch[first:last] if isinstance(stretch, bytes) else stretch.read(first, last)
            )
            start, index = end, index + 1
        return b"".join(parts)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(_length(stretch) for stretch in self.stretches))


def _length(stretch: bytes | OpenFile | Part) -> int:
    if isinstance(stretch, bytes):
        return len(stretch)
    if isinstance(stretch, Part):
        return stretch.stop - stretch.start
    return stretch.signature.size
