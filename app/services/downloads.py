"""Downloads of published files: pieces of bytes and of open files."""

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
    """An open file and its signature at opening; deleting it does not interrupt a download."""

    name: str
    file: BinaryIO
    signature: Signature

    @classmethod
    def of(cls, path: Path, name: str) -> OpenFile:
        """Open a file, which the artifact calls `name`; may raise OSError."""
        file = path.open("rb", buffering=0)
        return cls(name, file, Signature.of(os.fstat(file.fileno())))

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`, which must be within the file."""
        descriptor = self.file.fileno()
        content = bytearray()
        while chunk := os.pread(descriptor, stop - start - len(content), start + len(content)):
            content += chunk
        now = Signature.of(os.fstat(descriptor))
        # Not ctime: deleting a hard link changes it.
        if (now.size, now.mtime_ns) != (self.signature.size, self.signature.mtime_ns):
            raise StorageError(f"{self.name} changed while it was being sent.")
        return bytes(content)


@dataclass(frozen=True)
class Slice:
    """The bytes of a download from `start` up to `stop`."""

    of: Download
    start: int
    stop: int

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`, counted from the part's start."""
        return self.of.read(self.start + start, self.start + stop)


@dataclass(frozen=True)
class Download:
    """Bytes to send; `version` changes whenever they do, and becomes the strong ETag."""

    name: str
    media_type: str
    version: str
    pieces: Sequence[bytes | OpenFile | Slice]

    def close(self) -> None:
        """Close the files."""
        for piece in self.pieces:
            if isinstance(piece, OpenFile):
                piece.file.close()
            elif isinstance(piece, Slice):
                piece.of.close()

    @property
    def size(self) -> int:
        """The total number of bytes."""
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop` or the end."""
        parts = []
        index = bisect_right(self._ends, start)
        while index < len(self.pieces) and start < stop:
            piece, end = self.pieces[index], self._ends[index]
            begin = end - _length(piece)
            first, last = start - begin, min(stop, end) - begin
            parts.append(piece[first:last] if isinstance(piece, bytes) else piece.read(first, last))
            start, index = end, index + 1
        return b"".join(parts)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(_length(piece) for piece in self.pieces))


def _length(piece: bytes | OpenFile | Slice) -> int:
    if isinstance(piece, bytes):
        return len(piece)
    if isinstance(piece, Slice):
        return piece.stop - piece.start
    return piece.signature.size
