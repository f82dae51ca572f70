"""Estimates the cost of merging a tensor: operations, bytes read, working memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.contract.tensors import TensorHeader

# Blockwise methods stream a tensor in blocks of this many entries: with a few experts, a block
# of each stays in the processor's cache. The artifact's bytes do not depend on it; speed does.
BLOCK_ENTRIES = 2**18
# Tensors that are read more than once stay in memory if all inputs have this many entries at most.
RESIDENT_ENTRIES = 2**23
_WORKING_BYTES = 4  # arithmetic is in float32
# Of an m x n matrix, m >= n: a Gram matrix and a product with its long side, m·n² and 2·m·n², and
# the Gram matrix's eigenvectors, about 8·n³ in all.
_TALL_FLOPS, _SQUARE_FLOPS = 3, 8
_GRAM_BYTES = 8
# A matrix merged whole: beside the inputs a sum or residual, the product, the result; per expert an
# eigenproblem, and a few square matrices for making bases orthogonal.
_WHOLE_COPIES, _EIGENPROBLEM, _SQUARES = 3, 2, 8
# What a decomposition takes, in square matrices, where values are equal and it makes all vectors.
_DECOMPOSED = 8


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
    memory = (2 * count + 1) * (min(entries, BLOCK_ENTRIES) if blockwise else entries)
    memory += _resident(count * entries, passes) if blockwise else 0
    return Cost(2 * passes * count * entries, bytes_read, memory * _WORKING_BYTES)


def spectral_cost_of(
    target: TensorHeader,
    sources: Sequence[TensorHeader],
    *,
    streamed: bool,
    passes: int = 1,
    basis_copies: float = 1.0,
    of_sum: bool = False,
) -> Cost:
    """Return an estimate for one matrix merged by its spectrum, in row blocks or whole.

    `basis_copies` is how many times the full rank all experts' bases together have; with `of_sum`
    only the base and the task vectors' sum are in memory, and only the sum is decomposed.
    """
    # The sum is counted among the copies.
    count, entries = 1 if of_sum else len(sources), target.numel
    tall, thin = max(target.shape), min(target.shape)
    bytes_read = passes * sum(source.size_bytes for source in sources)
    flops = (count + 2) * (_TALL_FLOPS * tall * thin**2 + _SQUARE_FLOPS * thin**3)
    if streamed:
        # Sums of one stretch: each expert's own products and those with the sum. Or the sum's
        # alone, which the same task decomposes.
        squares = 1 + _DECOMPOSED if of_sum else 2 * count + 1
        state = squares * thin**2 * _GRAM_BYTES
        block = (2 * count + 4) * min(entries, BLOCK_ENTRIES) * _WORKING_BYTES
        block += _resident((count + of_sum) * entries, passes) * _WORKING_BYTES
        return Cost(flops, bytes_read, state + block)
    whole = (count + _WHOLE_COPIES + basis_copies) * entries * _WORKING_BYTES
    square = (_EIGENPROBLEM * count + _SQUARES * basis_copies**2) * thin**2 * _GRAM_BYTES
    return Cost(flops, bytes_read, int(whole + square))


def _resident(entries: int, passes: int) -> int:
    """Return how many of all inputs' entries stay in memory from one pass to the next."""
    return entries if passes > 1 and entries <= RESIDENT_ENTRIES else 0
