"""What a tensor's merge costs: operations, bytes read, working memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.contract.tensors import TensorHeader

# Blockwise methods stream a tensor in blocks of this many entries: with a few experts, a block
# of each stays in the processor's cache. The artifact's bytes do not depend on it; speed does.
BLOCK_ENTRIES = 2**17
# Tensors that are read more than once stay in memory if all inputs have this many entries at most.
RESIDENT_ENTRIES = 2**23
_WORKING_BYTES = 4  # arithmetic is in float32
# A thin SVD of an m x n matrix, m >= n, takes about 14 m n² + 8 n³ operations (Golub & Van Loan).
_SVD_TALL, _SVD_SQUARE = 14, 8
# Task vectors, their bases and the concatenation are in memory together.
_SPECTRAL_COPIES = 3


@dataclass(frozen=True)
class Cost:
    """Operations, bytes read from the inputs, and bytes of working memory."""

    flops: int
    bytes_read: int
    memory_bytes: int


def cost_of(
    target: TensorHeader, sources: Sequence[TensorHeader], *, blockwise: bool, passes: int = 1
) -> Cost:
    """Return an estimate for one tensor with these inputs, read `passes` times."""
    count, entries = len(sources), target.numel
    bytes_read = passes * sum(source.size_bytes for source in sources)
    if blockwise or len(target.shape) != 2:
        memory = (2 * count + 1) * min(entries, BLOCK_ENTRIES) * _WORKING_BYTES
        if passes > 1 and count * entries <= RESIDENT_ENTRIES:
            memory += count * entries * _WORKING_BYTES
        return Cost(2 * passes * count * entries, bytes_read, memory)
    tall, thin = max(target.shape), min(target.shape)
    flops = (count + 2) * (_SVD_TALL * tall * thin**2 + _SVD_SQUARE * thin**3)
    return Cost(flops, bytes_read, (_SPECTRAL_COPIES * count + 2) * entries * _WORKING_BYTES)
