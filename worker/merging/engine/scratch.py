"""Memory that a thread uses for one block after the other: fresh pages cost more than the work."""

from __future__ import annotations

import threading

import torch


class Scratch(threading.local):
    """A thread's float32 entries, as many as were ever asked for; what they hold is anything."""

    _entries = torch.empty(0)

    def take(self, count: int) -> torch.Tensor:
        """Return `count` entries, flat: the same ones each time."""
        if len(self._entries) < count:
            self._entries = torch.empty(count)
        return self._entries[:count]
