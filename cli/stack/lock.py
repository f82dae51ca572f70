"""A lock that allows one `afluente up` per data folder; the kernel releases it with its holder."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from app.contract.errors import ConflictError

# After a `kill -9`, the old queue holds the lock for a moment until it ends.
_PATIENCE_SECONDS = 3.0


def lock(folder: Path) -> int:
    """Return a descriptor that locks the folder while any process has it open.

    Raises ConflictError if another `afluente up` uses the folder.
    """
    path = folder / "up.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.read(descriptor, 20).decode().strip() or "unknown"
                os.close(descriptor)
                raise ConflictError(
                    f"Another `afluente up` (process {holder}) uses {folder}; stop it, or choose "
                    "another folder with --data-dir."
                ) from None
            time.sleep(0.05)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor
