"""Random masks that depend on a seed and on an entry's position, not on how blocks are cut."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.random import PCG64
from numpy.typing import NDArray
from torch import Tensor

_STEPS = 2**32


def bernoulli(seed: int, start: int, count: int, probability: float) -> Bool[Tensor, " n"]:
    """Return for the entries `start` to `start + count` whether each is drawn, on the CPU."""
    limit = round(probability * _STEPS)
    numbers = _numbers(seed, start, count)
    drawn = numbers < np.uint32(limit) if limit < _STEPS else np.ones(count, bool)
    return torch.from_numpy(drawn)


def uniform(seed: int, start: int, count: int) -> Float[Tensor, " n"]:
    """Return for the same entries a number in [0, 1) each, float64, on the CPU."""
    return torch.from_numpy(_numbers(seed, start, count) / _STEPS)


def _numbers(seed: int, start: int, count: int) -> NDArray[np.uint32]:
    """Return 32 random bits an entry.

    Entry i takes half of the generator's 64-bit number i // 2, to which it can jump.
    """
    generator = PCG64(seed)
    generator.advance(start // 2)
    skipped = start % 2
    raw = generator.random_raw((skipped + count + 1) // 2)
    return raw.astype("<u8", copy=False).view("<u4")[skipped : skipped + count]
