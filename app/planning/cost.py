"""How a tensor is cut into blocks, and what its merge costs: operations, bytes read, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from app.contract.catalogue import MethodParameters
from app.contract.catalogue.subspace import SpectralParameters
from app.contract.tensors import TensorHeader

# Tensors are read in blocks of this many entries: with a few experts, a block of each stays in the
# processor's cache. The artifact's bytes do not depend on it; speed does.
BLOCK_ENTRIES = 2**18
# Larger tensors are cut into stretches of this many entries, which are worked on in parallel. It
# decides the order of sums, and what the journal knows; it does not depend on the threads.
STRETCH_ENTRIES = 2**22
# Tensors that are read more than once stay in memory if all inputs have this many entries at most.
RESIDENT_ENTRIES = 2**23
# A matrix that is this large and this tall is read several times rather than kept in memory.
_LARGE, _TALL = 2**22, 8
_WORKING_BYTES = 4  # arithmetic is in float32
# Of an m x n matrix, m >= n: a Gram matrix and a product with its long side, m·n² and 2·m·n², and
# the Gram matrix's eigenvectors, about 8·n³ in all.
_TALL_FLOPS, _SQUARE_FLOPS = 3, 8
_GRAM_BYTES = 8
# A matrix in one block: besides the inputs a sum, the rows of a basis, the product, the result; an
# eigenproblem per expert, and a few square matrices for making bases orthogonal.
_WHOLE_COPIES, _EIGENPROBLEM, _SQUARES = 3, 2, 8
# A regression: besides each expert's Gram matrix, in float32, their sum, its factor and a copy of
# one, in float64.
_REGRESSION = 6
# The least ratio of a matrix's short side to the rank of its factors that makes them cheaper.
THIN = 4
# What a decomposition takes, in square matrices, if values are equal and it finds all vectors.
_DECOMPOSED = 8


@dataclass(frozen=True)
class Cut:
    """How a tensor is cut into blocks, which decides the order of sums over it.

    Attributes:
        piece: how many entries must stay together in a block.
        by_rows: whether a block has the tensor's shape, and whole rows; else it is flat.
        transposed: whether the method sees the transpose. Square matrices are transposed too.
        resident: whether the blocks stay in memory from one reading to the next.
    """

    piece: int = 1
    by_rows: bool = False
    transposed: bool = False
    resident: bool = False


@dataclass(frozen=True)
class Cost:
    """Operations, bytes read from the inputs, and bytes of working memory."""

    flops: int
    bytes_read: int
    memory_bytes: int


def cut_of(shape: Sequence[int], inputs: int, parameters: MethodParameters | None) -> Cut:
    """Return how a method's tensor is cut; flat blocks without a method.

    A matrix of a spectral method is one block, unless it is so tall that its Gram matrices are
    small compared to it.
    """
    entries = prod(shape)
    if parameters is None:
        return Cut()
    readings = readings_of(shape, parameters)
    if isinstance(parameters, SpectralParameters):
        rows, columns = shape
        if rows >= _TALL * columns and entries >= _LARGE:
            return Cut(columns, by_rows=True)
        return Cut(max(1, entries), by_rows=True, transposed=rows <= columns, resident=True)
    resident = (
        readings > 1
        and not parameters.whole_model
        and inputs * entries <= RESIDENT_ENTRIES
        and entries <= STRETCH_ENTRIES
    )
    if parameters.by_rows and len(shape) > 1:
        return Cut(max(1, prod(shape[1:])), by_rows=True, resident=resident)
    return Cut(resident=resident)


def readings_of(shape: Sequence[int], parameters: MethodParameters) -> int:
    """Return how often a method looks at a tensor's entries."""
    return parameters.readings if len(shape) > 1 else parameters.readings_of_vectors


def is_thin(header: TensorHeader) -> bool:
    """Return whether the spectrum of a task matrix is cheaper by its factors than by itself."""
    rank = header.change_rank
    return rank is not None and len(header.shape) == 2 and THIN * rank <= min(header.shape)


def cost_of(
    target: TensorHeader, sources: Sequence[TensorHeader], parameters: MethodParameters | None
) -> tuple[Cut, int, Cost]:
    """Return how a tensor is cut, how often it is read, and an estimate of its merge's cost."""
    cut = cut_of(target.shape, len(sources), parameters)
    readings = readings_of(target.shape, parameters) if parameters else 1
    passes = 1 if cut.resident else readings
    bytes_read = passes * sum(source.size_bytes for source in sources)
    held = sum(source.held_bytes for source in sources)
    if isinstance(parameters, SpectralParameters):
        flops, memory = _spectral(target, sources, parameters, cut)
        return cut, passes, Cost(flops, bytes_read, held + memory)
    count, entries = len(sources), target.numel
    kept = (2 * count + 1) * min(entries, BLOCK_ENTRIES) + (count * entries if cut.resident else 0)
    memory = held + kept * _WORKING_BYTES
    if parameters and parameters.statistic == "input_grams" and len(target.shape) == 2:
        memory += int((count + _REGRESSION) * target.shape[1] ** 2 * _WORKING_BYTES)
    return cut, passes, Cost(2 * readings * count * entries, bytes_read, memory)


def _spectral(
    target: TensorHeader,
    sources: Sequence[TensorHeader],
    parameters: SpectralParameters,
    cut: Cut,
) -> tuple[int, int]:
    """Return operations and working memory of a matrix merged by its spectrum."""
    # Of a method on the sum, only the base and the sum are in memory, and the sum is decomposed.
    inputs, entries = len(sources), target.numel
    count = 1 if parameters.of_sum else inputs
    tall, thin = max(target.shape), min(target.shape)
    # Those that are decomposed by their factors cost next to nothing.
    factored = sum(map(is_thin, sources)) if parameters.by_factors else 0
    problems = max(0, count - factored) + 2
    flops = problems * (_TALL_FLOPS * tall * thin**2 + _SQUARE_FLOPS * thin**3)
    square = thin**2 * _GRAM_BYTES
    if cut.piece < entries:
        # Sums of one stretch: each expert's own products and those with the sum. Or the sum's
        # alone, which the same task decomposes.
        squares = 1 + _DECOMPOSED if parameters.of_sum else 2 * count + 1
        copies = parameters.basis_copies(inputs)
        squares += int((1 + _EIGENPROBLEM) * (copies**2 - 1))
        block = (2 * count + 4) * min(entries, BLOCK_ENTRIES)
        return flops, squares * square + block * _WORKING_BYTES
    copies = parameters.basis_copies(inputs)
    whole = (count + _WHOLE_COPIES + copies) * entries * _WORKING_BYTES
    return flops, int(whole + (_EIGENPROBLEM * count + _SQUARES * copies**2) * square)
