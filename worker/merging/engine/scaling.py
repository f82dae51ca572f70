"""A block's outputs before rounding: base + λ·merged, for one λ or for all those of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from app.planning.cost import BLOCK_ENTRIES
from worker.merging.engine.scratch import Scratch
from worker.merging.kernels import blocks

# Blocks of results that are made before they are written, and that a thread keeps room for.
_BLOCKS_AT_ONCE = 8


_SCRATCH = Scratch()


def scaled(
    base: torch.Tensor, merged: torch.Tensor, scales: Sequence[float]
) -> Iterator[tuple[int, Sequence[float], torch.Tensor, bool]]:
    """Yield base + λ·merged in parts: where a part begins, its λ, a row for each, all finite.

    The tensors are flat and float32. A part is overwritten when the next is asked for.
    """
    for first in range(0, len(merged), BLOCK_ENTRIES):
        part = slice(first, min(first + BLOCK_ENTRIES, len(merged)))
        width = part.stop - first
        at_once = _BLOCKS_AT_ONCE * max(1, BLOCK_ENTRIES // width)
        for some in range(0, len(scales), at_once):
            chosen = scales[some : some + at_once]
            rows = _SCRATCH.take(len(chosen) * width).view(len(chosen), width)
            finite = blocks.add_scaled(base[part], chosen, merged[part], rows)
            yield first, chosen, rows, finite
