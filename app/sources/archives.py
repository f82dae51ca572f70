"""Lists the members of tars, so that each can be read by itself."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from io import FileIO, RawIOBase
from typing import Any

from app.contract.errors import InvalidManifestError
from app.sources.audio_sources import TarMember

_MOST_MEMBERS = 1_000_000
# No header is longer.
_MOST_AT_ONCE = 1 << 20


def members_of(handle: FileIO, label: str) -> Iterator[tuple[str, TarMember]]:
    """Yield (name, member) for the regular files of an uncompressed tar, in order.

    Reads headers only. Raises InvalidManifestError for what is no tar, or cut.
    """
    try:
        with tarfile.open(fileobj=_Headers(handle), mode="r:") as tar:
            for count, info in enumerate(tar, start=1):
                # The library keeps every header.
                tar.members = []  # type: ignore[attr-defined]
                if count > _MOST_MEMBERS:
                    raise tarfile.ReadError(f"over {_MOST_MEMBERS:,} files")
                if info.isreg() and not info.issparse():
                    yield info.name.removeprefix("./"), TarMember(info.offset_data, info.size)
    except (tarfile.TarError, ValueError, OSError) as error:
        raise InvalidManifestError(
            f"{label} is damaged, or no uncompressed tar ({error})"
        ) from None


class _Headers(RawIOBase):
    """A tar's file, of which only headers may be read."""

    def __init__(self, handle: FileIO) -> None:
        self._handle = handle

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def read(self, size: int = -1) -> Any:
        if not 0 <= size <= _MOST_AT_ONCE:
            raise tarfile.ReadError("a header is too long")
        return self._handle.read(size)
