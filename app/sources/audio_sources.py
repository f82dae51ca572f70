"""Names where an utterance's audio is, a file or a member of one, and opens it as a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from app.contract.errors import SourceNotFoundError, SourceTooLargeError
from app.sources.checkpoint import Signature
from app.sources.local import Roots, open_regular, open_unchanged

# A member is copied into memory; a recording of a day at 16 kHz has 2.8 GB.
_MOST_MEMBER_BYTES = 1 << 30


@dataclass(frozen=True)
class TarMember:
    """A file in a tar: its bytes are in one piece."""

    offset: int
    size: int

    def read(self, handle: FileIO) -> bytes:
        """Return the bytes."""
        if self.size > _MOST_MEMBER_BYTES:
            raise SourceTooLargeError(f"it has {self.size:,} bytes; unpack the tar")
        content = os.pread(handle.fileno(), self.size, self.offset)
        if len(content) < self.size:
            raise SourceNotFoundError("the tar ends within it")
        return content


@dataclass(frozen=True)
class TableCell:
    """The bytes in a row (from 0) of a parquet or arrow file, in the named column."""

    row: int
    column: str

    def read(self, handle: FileIO) -> bytes:
        """Return the bytes; SourceError for a row without any, or that cannot be read."""
        from app.sources.arrow_tables import read_cell  # pyarrow is only in workers for certain

        return read_cell(handle, self.row, self.column)


@dataclass(frozen=True)
class AudioSource:
    """A file, or a member of one; `downloaded` if the file is in the service's own cache."""

    path: Path
    member: TarMember | TableCell | None = None
    downloaded: bool = False

    def open(self, roots: Roots = None, signature: Signature | None = None) -> FileIO:
        """Open the audio, unbuffered; a member is copied to a file in memory.

        `signature` is what the file had when it was looked at before. Raises SourceError: the file
        is not there, not allowed, or changed; the member cannot be read.
        """
        if signature is None:
            handle = self.open_file(roots)
        else:
            handle = open_unchanged(self.path, signature, self.path.name)
        if self.member is None:
            return handle
        with handle:
            content = self.member.read(handle)
        copy = FileIO(os.memfd_create("audio", os.MFD_CLOEXEC), "rb+")
        copy.write(content)
        copy.seek(0)
        return copy

    def open_file(self, roots: Roots = None) -> FileIO:
        """Open the file that the audio is in; the `roots` are for files that callers name."""
        return open_regular(self.path, None if self.downloaded else roots, self.path.name)
