"""The decoder's keys and values for a batch during a search."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_FIRST_ENTRIES = 64


class KeyValueCache:
    """Keys and values of the utterances of a batch, one slot per utterance.

    `cross` (cross-attention) is shared by all beams of an utterance. `past` (self-attention) is a
    growing list of entries, and a mask from the search tells which of them a beam sees, so that no
    beam's history is ever copied. Slots of finished utterances are removed.
    """

    def __init__(
        self,
        slots: int,
        layers: int,
        heads: int,
        positions: int,
        size: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate the cache for `slots` utterances of `positions` encoder positions."""
        # Both of shape (layers, key or value, slots, heads, entries, size).
        self.cross = torch.empty(layers, 2, slots, heads, positions, size, dtype=dtype)
        self.past = torch.empty(layers, 2, slots, heads, _FIRST_ENTRIES, size, dtype=dtype)
        self.slots = slots
        self.entries = 0

    def clear_past(self) -> None:
        """Remove all entries of `past`."""
        self.entries = 0

    def reserve(self, more: int) -> None:
        """Make room for `more` entries."""
        room = self.past.shape[4]
        if self.entries + more > room:
            layers, two, _, heads, _, size = self.past.shape
            entries = max(2 * room, room + more)
            past = self.past.new_empty(layers, two, self.slots, heads, entries, size)
            past[..., : self.entries, :] = self.past[:, :, : self.slots, :, : self.entries]
            self.past = past

    def select(self, slots: Sequence[int]) -> list[int]:
        """Keep only these slots; return the old slot of each new slot.

        Slots below the new number of slots stay in place, to avoid copies.
        """
        kept, count = set(slots), len(slots)
        movers = [slot for slot in slots if slot >= count]
        order = [slot if slot in kept else movers.pop() for slot in range(count)]
        for new, old in enumerate(order):
            if new != old:
                self.cross[:, :, new] = self.cross[:, :, old]
                self.past[:, :, new, :, : self.entries] = self.past[:, :, old, :, : self.entries]
        self.slots = count
        return order
