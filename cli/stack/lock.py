"""One `afluente up` a data folder: a lock that the kernel lets go of, however its holder ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from app.contract.errors import ConflictError

# After a kill -9 the old queue needs a moment to die, and holds the lock until then.
_PATIENCE_SECONDS = 3.0


def lock(folder: Path) -> int:
    """Return a descriptor that locks the folder while anyone has it open.

    Raises ConflictError if another `afluente up` runs there.
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
                    f"Another `afluente up` (process {holder}) runs on {folder}; stop it, or give "
                    "this one a folder of its own with --data-dir."
                ) from None
            time.sleep(0.05)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor
