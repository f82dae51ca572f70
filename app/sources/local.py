"""Files on this machine: only regular ones, and only under the allowed folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from app.contract.errors import SourceNotAllowedError, SourceNotFoundError
from app.sources.checkpoint import Signature, SourceFile

_Roots = tuple[Path, ...] | None


def allowed_path(path: Path, roots: _Roots, label: str) -> Path:
    """Return the path with every link followed, if it lies under one of the roots.

    Nothing is said of whether a path outside the roots exists.

    Raises:
        SourceNotAllowedError: it lies, or a link leads, outside them.

    """
    try:
        real = Path(os.path.realpath(path))
        allowed = roots is None or any(real.is_relative_to(os.path.realpath(r)) for r in roots)
    except (ValueError, OSError):
        raise SourceNotAllowedError(f"{label}: this is not a path") from None
    if not allowed:
        raise SourceNotAllowedError(
            f"{label}: outside the folders that file:// may reach, or linked to the outside; "
            "the operator names them in AFLUENTE_FILE_ROOTS"
        )
    return real


def regular_file(path: Path, roots: _Roots, label: str) -> tuple[Path, os.stat_result]:
    """Return the real path and stat of an allowed, readable, regular file.

    Raises:
        SourceNotFoundError: there is none, or it cannot be read.
        SourceNotAllowedError: it lies outside the roots, or is a device, pipe or socket.

    """
    real = allowed_path(path, roots, label)
    try:
        status = real.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise SourceNotFoundError(f"{label}: there is no such file") from None
    except OSError as error:
        raise SourceNotFoundError(f"{label}: cannot be read ({error.strerror})") from None
    # Before any open: opening a pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise SourceNotAllowedError(f"{label}: this is {kind}, a file is needed")
    if not os.access(real, os.R_OK):
        raise SourceNotFoundError(f"{label}: cannot be read (Permission denied)")
    return real, status


def open_regular(path: Path, roots: _Roots, label: str) -> FileIO:
    """Open an allowed, regular file; what is opened is checked, not only the path.

    Whoever can write below a root may swap a folder for a link between a check and an open. It is
    not buffered: libraries that read by its descriptor may share it. Raises like `regular_file`.
    """
    real, _ = regular_file(path, roots, label)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        handle = FileIO(os.open(real, flags), "rb")
    except OSError as error:
        raise SourceNotFoundError(f"{label}: cannot be read ({error.strerror})") from None
    try:
        opened = Path(f"/proc/self/fd/{handle.fileno()}").readlink()
        allowed = roots is None or any(opened.is_relative_to(os.path.realpath(r)) for r in roots)
        if not allowed or not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise SourceNotAllowedError(f"{label}: the path changed while it was opened")
    except BaseException:
        handle.close()
        raise
    return handle


class LocalFolder:
    """A checkpoint's folder on this machine."""

    def __init__(self, path: Path, roots: _Roots, label: str) -> None:
        self.label = label
        self.path = allowed_path(path, roots, label)
        self._roots = roots
        if not self.path.exists():
            raise SourceNotFoundError(f"{label}: there is no such folder")
        if not self.path.is_dir():
            raise SourceNotFoundError(
                f"{label}: this is a file; name the folder that holds config.json and the weights"
            )
        if not os.access(self.path, os.R_OK | os.X_OK):
            raise SourceNotFoundError(f"{label}: the folder cannot be read (Permission denied)")

    def find(self, names: Iterable[str]) -> dict[str, SourceFile]:
        """Return the files of these names that the folder has."""
        return {name: self._file(name) for name in names if os.path.lexists(self.path / name)}

    def read_prefix(self, file: SourceFile, length: int) -> bytes:
        """Return the first `length` bytes, or fewer where the file ends."""
        assert file.path is not None
        try:
            with file.path.open("rb") as stream:
                return stream.read(length)
        except OSError as error:
            raise SourceNotFoundError(
                f"{self.label}: {file.name} cannot be read ({error.strerror})"
            ) from None

    def _file(self, name: str) -> SourceFile:
        real, status = regular_file(self.path / name, self._roots, f"{self.label}: {name}")
        return SourceFile(name=name, size=status.st_size, path=real, signature=Signature.of(status))
