"""What a decoder keeps of a batch while it searches: what it heard, and what it said."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_FIRST_ENTRIES = 64


class Memory:
    """Keys and values of the utterances of a batch, each in a slot of its own.

    What was heard is there once an utterance, whatever the number of beams. What was said is a
    list of entries that only grows: which of them a beam sees is the search's to say, by a mask,
    so that no beam's history is ever copied. Slots of finished utterances are given up.
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
        """Make room for what `slots` utterances of `positions` encoder positions say."""
        # Both of shape (layers, key or value, slots, heads, entries, size).
        self.heard = torch.empty(layers, 2, slots, heads, positions, size, dtype=dtype)
        self.said = torch.empty(layers, 2, slots, heads, _FIRST_ENTRIES, size, dtype=dtype)
        self.slots = slots
        self.entries = 0

    def forget(self) -> None:
        """Drop what was said, and keep what was heard."""
        self.entries = 0

    def make_room(self, more: int) -> None:
        """Let `more` entries fit."""
        room = self.said.shape[4]
        if self.entries + more > room:
            layers, two, _, heads, _, size = self.said.shape
            entries = max(2 * room, room + more)
            said = self.said.new_empty(layers, two, self.slots, heads, entries, size)
            said[..., : self.entries, :] = self.said[:, :, : self.slots, :, : self.entries]
            self.said = said

    def keep(self, slots: Sequence[int]) -> list[int]:
        """Keep these slots only; return, for each new slot, the old one that is now in it.

        Slots before the new end stay where they are, so that little is copied.
        """
        kept, count = set(slots), len(slots)
        movers = [slot for slot in slots if slot >= count]
        order = [slot if slot in kept else movers.pop() for slot in range(count)]
        for new, old in enumerate(order):
            if new != old:
                self.heard[:, :, new] = self.heard[:, :, old]
                self.said[:, :, new, :, : self.entries] = self.said[:, :, old, :, : self.entries]
        self.slots = count
        return order
