"""Opens files on this machine: only regular ones, and only under the allowed folders."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader, FileIO
from pathlib import Path

from app.contract.errors import (
    SourceChangedError,
    SourceError,
    SourceNotAllowedError,
    SourceNotFoundError,
    StorageError,
)
from app.sources.checkpoint import Signature

# Folders that may be read; None allows every path.
Roots = tuple[Path, ...] | None
# Faults of this process or machine, not of the file: it may be opened later.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def allowed_path(path: Path, roots: Roots, label: str) -> Path:
    """Return the path with every link followed, if it lies under one of the roots.

    The error does not tell whether a path outside the roots exists.

    Raises:
        SourceNotAllowedError: it lies, or a link leads, outside them.

    """
    try:
        real = Path(os.path.realpath(path))
    except (ValueError, OSError):
        raise SourceNotAllowedError(f"{label}: this is not a path") from None
    _check_inside(real, roots, label)
    return real


def _check_inside(real: Path, roots: Roots, label: str) -> None:
    if roots is not None and not any(real.is_relative_to(os.path.realpath(r)) for r in roots):
        raise SourceNotAllowedError(
            f"{label}: outside the folders that file:// may reach, or linked to the outside; "
            "the operator names them in AFLUENTE_FILE_ROOTS"
        )


def open_regular(path: Path, roots: Roots, label: str) -> FileIO:
    """Open an allowed, regular file for reading, unbuffered; nothing else is ever opened.

    Whoever can write below a root can swap a folder for a link at any time. So a descriptor holds
    the file first, the descriptor is checked, and the file is opened through it.

    Raises:
        SourceNotFoundError: there is none, or it cannot be read.
        SourceNotAllowedError: it lies outside the roots, or is a device, pipe or socket.
        StorageError: this process or machine has too many files open.

    """
    real = allowed_path(path, roots, label)
    try:
        # O_PATH opens nothing yet: a pipe would wait for ever, a device might act.
        held = os.open(real, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_held(held, roots, label)
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            return FileIO(os.open(in_proc(held), flags), "rb")
        finally:
            os.close(held)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceNotFoundError(f"{label}: there is no such file") from None
    except OSError as error:
        if error.errno in _OURS:
            raise StorageError(f"{label}: cannot be opened now ({error.strerror})") from None
        raise SourceNotFoundError(f"{label}: cannot be read ({error.strerror})") from None


def _check_held(held: int, roots: Roots, label: str) -> None:
    """Raise SourceNotAllowedError for anything but a regular file under the roots."""
    mode = os.fstat(held).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise SourceNotAllowedError(f"{label}: this is {kind}, a file is needed")
    _check_inside(path_of(held), roots, label)


def open_unchanged(path: Path, signature: Signature, label: str) -> FileIO:
    """Open a file that was looked at before, for reading, unbuffered.

    Raises SourceChangedError if it was changed or replaced since.
    """
    try:
        handle = open_regular(path, None, label)
    except SourceError as error:
        reason = error.message.removeprefix(f"{label}: ")
        raise SourceChangedError(f"{label} vanished since it was looked at: {reason}") from None
    if Signature.of(os.fstat(handle.fileno())) != signature:
        handle.close()
        raise SourceChangedError(f"{label} changed since it was looked at")
    return handle


def read_unchanged(path: Path, signature: Signature, length: int, label: str) -> bytes:
    """Return the first `length` bytes of a file that was looked at before.

    Raises SourceChangedError as `open_unchanged`, and SourceNotFoundError if it cannot be read.
    """
    try:
        with BufferedReader(open_unchanged(path, signature, label)) as stream:
            return stream.read(length)
    except OSError as error:
        raise SourceNotFoundError(f"{label} cannot be read ({error.strerror})") from None


def in_proc(descriptor: int) -> str:
    """Return the path by which Linux opens the file of a descriptor, wherever that is now."""
    return f"/proc/self/fd/{descriptor}"


def path_of(descriptor: int) -> Path:
    """Return the path of the file that a descriptor holds, all links followed."""
    return Path(os.readlink(in_proc(descriptor)))  # noqa: PTH115 - a descriptor, not a path
