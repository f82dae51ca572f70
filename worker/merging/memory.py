"""Memory: what a thread reuses, what glibc keeps while a merge runs, how much there is."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
_USUAL_BYTES = 2**17
"""Where glibc has both thresholds before it begins to move them."""


class Scratch(threading.local):
    """Float32 entries that a thread reuses: fresh pages cost more than the work on them."""

    _entries = torch.empty(0)

    def take(self, count: int) -> torch.Tensor:
        """Return `count` entries, flat: the same memory each time, with any content."""
        if len(self._entries) < count:
            self._entries = torch.empty(count)
        return self._entries[:count]


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory for the next tensor, and give it back at the end.

    By default large blocks go back to the system at once, and each tensor pays for fresh pages: a
    tenth of a spectral merge's time. Peak memory is the same. The objects that exist by now are
    also hidden from the garbage collector: torch has half a million, which it would visit again
    and again.
    """
    gc.freeze()
    try:
        with _thresholds_raised():
            yield
    finally:
        gc.unfreeze()


@contextmanager
def _thresholds_raised() -> Iterator[None]:
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    except (OSError, AttributeError):  # another C library: it has its own ways
        yield
        return
    try:
        yield
    finally:
        for threshold in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            libc.mallopt(threshold, _USUAL_BYTES)
        libc.malloc_trim(0)


def available_bytes() -> int:
    """Return how much memory this process may still take: the machine's, or its cgroup's limit."""
    found = [_meminfo()]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return max(0, min(found))


def _meminfo() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2**62
