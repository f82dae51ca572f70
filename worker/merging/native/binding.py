"""The compiled kernels, called on the calling thread without the interpreter's lock.

Written in C (the files beside this one) and compiled when the project is installed. What they add
up in float32 is added entry by entry in the order of the experts, so results depend neither on
where blocks begin nor on the processor's instruction set. Products of matrices and tridiagonal
forms depend on the instruction set too (docs/decisions/0014).

Tensors are contiguous float32 on the CPU unless a docstring says otherwise; a kernel called with
others raises ctypes.ArgumentError.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

from worker.merging.memory import Scratch

__all__ = [
    "ALIGNED", "BUCKETS", "EQUAL", "FINITE", "RESULT_FINITE", "TOGETHER", "Combination", "LowRank",
    "Place", "ReadError", "Sources", "TridiagonalForm", "add_energies", "add_inner_products",
    "add_scaled", "all_finite", "banded_sum", "bucket_bounds", "clear_below", "combine_rows",
    "competition_mean", "competition_scores", "count_buckets", "eigenvalues", "eigenvectors",
    "elected_sum", "find_between", "largest_overlap", "mirror", "multiply", "spread",
    "weighted_sum",
]  # fmt: skip

# Shapes and dtypes, for jaxtyping.
Row = Float32[Tensor, " n"]
Rows = Float32[Tensor, "experts n"]
Vector = Float64[Tensor, " n"]
Vectors = Float64[Tensor, "count padded"]
Gram = NDArray[np.float64]
Numbers = Sequence[float]

# --- The library, and how it is called --------------------------------------------------------

INT, LONG, BOOL = ctypes.c_int32, ctypes.c_int64, ctypes.c_bool
FLOAT, DOUBLE, POINTER = ctypes.c_float, ctypes.c_double, ctypes.c_void_p

# The flags in /proc/cpuinfo of a processor with all instructions of x86-64's second to fourth level
# (the System V psABI's), beyond those of the level before.
_LEVELS = {
    "v2": {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"},
    "v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


def builds() -> list[Path]:
    """Return the builds of the library that this processor can run, the best first."""
    folder, machine = Path(__file__).parent, platform.machine()
    names = [f"native_{machine}"]
    if machine == "x86_64":
        has = _instructions()
        levels = takewhile(lambda level: _LEVELS[level] <= has, _LEVELS)
        names = [f"native_{machine}_{level}" for level in levels][::-1]
    return [path for name in names if (path := folder / f"{name}.so").exists()]


def _instructions() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())


def _digest() -> str:
    """Return the digest of the C sources, as setup.py compiles it into each build."""
    whole = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.[ch]")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


@cache
def _library() -> ctypes.CDLL:
    found = builds()
    if not found:
        raise ImportError(
            f"The compiled kernels are not in {Path(__file__).parent}, or not for this processor "
            f"({platform.machine()}). Install the project again: pip install -e . (or make install)"
        )
    library = ctypes.CDLL(str(found[0]))
    library.sources.restype = ctypes.c_char_p
    if library.sources().decode() != _digest():
        raise ImportError(
            f"{found[0]} was compiled from other sources than those beside it, and would be called "
            "wrongly. Install the project again: pip install -e . (or make install)"
        )
    return library


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """Return a kernel, given the C types of its result and its arguments."""
    found: Any = getattr(_library(), name)
    found.restype, found.argtypes = result, arguments
    return found


class Entries:
    """The C type of an argument that points to entries; None becomes NULL."""

    def __init__(self, dtype: torch.dtype, entry: Any) -> None:
        self._dtype, self._name, self._entry = dtype, str(dtype).removeprefix("torch."), entry

    def from_param(self, array: Tensor | NDArray[Any] | Sequence[float] | None) -> Any:
        """Return the C argument, for ctypes; TypeError if a kernel cannot take the array."""
        if array is None:
            return POINTER()
        if isinstance(array, Sequence):
            return (self._entry * len(array))(*array)
        if isinstance(array, Tensor):
            if array.dtype is self._dtype and array.is_cpu and array.is_contiguous():
                return POINTER(array.data_ptr())
        elif array.dtype == self._name and array.flags.c_contiguous:
            return POINTER(array.ctypes.data)
        raise TypeError(f"A kernel takes contiguous {self._name} in memory, not {array.dtype}.")


FLOATS = Entries(torch.float32, FLOAT)
DOUBLES = Entries(torch.float64, DOUBLE)
COUNTS = Entries(torch.int64, LONG)
ROWS = (FLOATS, LONG, LONG)
"""Rows of entries: their address, how many rows, how many entries in each."""

ALIGNED = 2**14
"""Blocks cut at multiples of this many entries give the long sums that one block would."""

# --- Every block: base, scales, NaN and infinity ----------------------------------------------

FINITE, EQUAL, RESULT_FINITE = 1, 2, 4
"""What was found in a block: all entries are finite; all inputs have the same bits; all results are
finite."""

_all_finite = _function("all_finite", BOOL, FLOATS, LONG)
_add_scaled = _function("add_scaled", BOOL, FLOATS, FLOATS, LONG, FLOATS, LONG, FLOATS, LONG)


def all_finite(values: Row) -> bool:
    """Return whether no entry is NaN or infinite."""
    return bool(_all_finite(values, len(values)))


def add_scaled(
    base: Row, scales: Numbers, values: Row, results: Float32[Tensor, "scales n"]
) -> bool:
    """Write base + scale·values into a row of `results` for each scale.

    Return whether all results are finite. Where scale·values is 0 the base is copied, with the sign
    of its zeros.
    """
    n = len(base)
    return bool(_add_scaled(base, scales, len(scales), values, n, results, n))


# --- Linear combinations of rows, in memory or as they are read -------------------------------


class Combination(ctypes.Structure):
    """The coefficients of a linear combination of inputs, and what becomes of the sum."""

    _fields_ = (
        ("coefficients", ctypes.POINTER(FLOAT)),
        ("scales", ctypes.POINTER(FLOAT)),
        ("outputs", LONG),
        ("subtracted", BOOL),
        ("apart", BOOL),
        ("copy_equal", BOOL),
    )

    def __init__(
        self,
        coefficients: Numbers,
        scales: Numbers = (1.0,),
        *,
        subtracted: bool,
        apart: bool = False,
        copy_equal: bool = False,
    ) -> None:
        """Describe the results.

        With `subtracted` the first input is the base W₀, the others are xᵢ − W₀, and there is a
        result W₀ + λ·Σ cᵢ(xᵢ − W₀) for each λ in `scales`; where λ·Σ is 0 the base is copied, with
        the sign of its zeros. With `apart` as well there are two results, W₀ and Σ cᵢ(xᵢ − W₀).

        Otherwise there is one result, Σ cᵢxᵢ, or with `copy_equal` the entry itself where all
        inputs have the same bits.
        """
        if apart and not subtracted:
            raise ValueError("`apart` needs `subtracted`: without a base there is one result only.")
        factors = FLOATS.from_param(coefficients), FLOATS.from_param(scales)
        super().__init__(*factors, len(scales), subtracted, apart, copy_equal)
        self._shape = len(coefficients) + subtracted, 2 if apart else len(scales)

    def reference(self, inputs: int, outputs: int) -> Any:
        """Return the argument for a kernel; ValueError unless so many inputs and results fit."""
        if self._shape != (inputs, outputs):
            raise ValueError(
                f"A combination of {self._shape[0]} inputs to {self._shape[1]} results was called "
                f"with {inputs} inputs and room for {outputs} results."
            )
        return ctypes.byref(self)


_combine_rows = _function("combine_rows", BOOL, *ROWS, LONG, POINTER, FLOATS, LONG)


def combine_rows(
    rows: Float32[Tensor, "inputs n"],
    start: int,
    combination: Combination,
    results: Float32[Tensor, "outputs m"],
) -> bool:
    """Fill `results` with the combination of rows from `start` on; return whether it is finite."""
    (count, stride), (outputs, width) = rows.shape, results.shape
    what = combination.reference(count, outputs)
    if not 0 <= start <= stride - width:
        raise IndexError(f"{width} entries from {start} on are not in rows of {stride}.")
    first = rows[0, start:]
    return bool(_combine_rows(first, count, width, rows.stride(0), what, results, width))


_STORED = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
SOURCES = (POINTER, LONG, BOOL, LONG, LONG)
"""Sources: their address, how many, whether the first is subtracted; first entry, how many."""
_read_rows = _function("read_rows", LONG, *SOURCES, FLOATS, DOUBLES)
_read_combined = _function("read_combined", LONG, *SOURCES, POINTER, FLOATS, DOUBLES)


class LowRank(ctypes.Structure):
    """What is added to a matrix in a file: rows become factors·(row + scale·left·right)."""

    _fields_ = (
        ("left", POINTER),
        ("right", POINTER),
        ("factors", POINTER),
        ("rank", LONG),
        ("columns", LONG),
        ("first_row", LONG),
        ("scale", FLOAT),
    )

    def __init__(
        self,
        left: Float32[Tensor, "rows rank"],
        right: Float32[Tensor, "rank columns"],
        scale: float,
        *,
        first_row: int = 0,
        factors: Row | None = None,
    ) -> None:
        """`left` and `factors` are those of the rows from `first_row` on."""
        if left.shape[1] != len(right) or (factors is not None and len(factors) != len(left)):
            raise ValueError(f"{left.shape} and {right.shape} are not the factors of a matrix.")
        arrays = [FLOATS.from_param(array) for array in (left, right, factors)]
        super().__init__(*arrays, *right.shape, first_row, scale)
        self._held = left, right, factors
        self._rows = range(first_row, first_row + len(left))

    def check(self, start: int, stop: int) -> None:
        """Raise IndexError unless the entries between two positions are in its rows."""
        columns = self.columns
        if start < self._rows.start * columns or stop > self._rows.stop * columns:
            raise IndexError(f"Entries {start} to {stop} are not in {self._rows} of {columns}.")


class _Source(ctypes.Structure):
    pass


_Source._fields_ = (
    ("descriptor", INT),
    ("dtype", INT),
    ("offset", LONG),
    ("added", ctypes.POINTER(_Source)),
    ("change", ctypes.POINTER(LowRank)),
)
Place = tuple[int, torch.dtype, int]
"""Where a tensor is stored: file descriptor, dtype, offset in bytes."""


def _source(place: Place) -> _Source:
    descriptor, dtype, offset = place
    return _Source(descriptor, _STORED[dtype], offset)


class ReadError(Exception):
    """An input could not be read: its number, and the errno (0 where its file ends)."""

    def __init__(self, number: int, code: int) -> None:
        super().__init__(number, code)
        self.number, self.code = number, code


class Sources:
    """The entries of one tensor in several files, read as float32.

    Half precision is widened exactly, float64 is rounded; then what an input adds is. Each
    read returns FINITE if all entries are, plus EQUAL if all inputs have the same bits, and raises
    ReadError. With `gram` it also adds the inner products of the rows, except the base that was
    subtracted, to the upper triangle.
    """

    def __init__(
        self,
        places: Sequence[Place],
        *,
        subtract: bool,
        added: Mapping[int, Place] = MappingProxyType({}),
        changes: Mapping[int, LowRank] = MappingProxyType({}),
    ) -> None:
        """Take the place of each input's entries.

        With `subtract` the first input is the base: it is subtracted from the others on reading.
        `added` (entries that are stored elsewhere) and `changes` are by the input's number.
        """
        self._count, self._subtract, self._changes = len(places), subtract, changes
        self._added = {number: _source(place) for number, place in added.items()}
        listed = [_source(place) for place in places]
        for number, source in self._added.items():
            listed[number].added = ctypes.pointer(source)
        for number, change in changes.items():
            listed[number].change = ctypes.pointer(change)
        self._sources = (_Source * len(places))(*listed)

    def read(
        self,
        start: int,
        rows: Float32[Tensor, "inputs n"],
        gram: Gram | None = None,
        *,
        subtracted: bool = True,
    ) -> int:
        """Fill `rows` with the entries from `start` on; the base stays in if not `subtracted`."""
        if len(rows) != self._count:
            raise ValueError(f"{self._count} inputs do not fit into {len(rows)} rows.")
        subtract = self._subtract and subtracted
        return self._call(_read_rows, start, rows.shape[1], rows, gram=gram, subtract=subtract)

    def add_inner_products(self, start: int, stop: int, gram: Gram) -> int:
        """Add to `gram` what `read` would; keep no entries."""
        return self._call(_read_combined, start, stop - start, None, None, gram=gram)

    def combine(
        self,
        start: int,
        combination: Combination,
        results: Float32[Tensor, "outputs n"],
        gram: Gram | None = None,
    ) -> int:
        """Fill `results` with the combination of the entries from `start` on.

        Return RESULT_FINITE as well if all results are finite.
        """
        what = combination.reference(self._count, len(results))
        return self._call(_read_combined, start, results.shape[1], what, results, gram=gram)

    def _call(
        self,
        kernel: Any,
        start: int,
        width: int,
        *into: Any,
        gram: Gram | None,
        subtract: bool | None = None,
    ) -> int:
        subtract = self._subtract if subtract is None else subtract
        _check_gram(gram, self._count - subtract)
        for change in self._changes.values():
            change.check(start, start + width)
        sources = self._sources, self._count, subtract
        answer = int(kernel(*sources, start, width, *into, gram))
        if answer < 0:
            failed, number = divmod(-answer, 2**32)
            raise ReadError(number, failed - 1)
        return answer


def _check_gram(gram: Gram | None, rows: int) -> None:
    if gram is not None and gram.shape != (rows, rows):
        raise ValueError(f"Inner products of {rows} rows do not fit into {gram.shape}.")


# --- Sums over the experts, entry by entry ----------------------------------------------------

_weighted_sum = _function("weighted_sum", None, *ROWS, FLOATS, FLOATS)
_add_inner_products = _function("add_inner_products", None, *ROWS, LONG, DOUBLES)
_elected_sum = _function("elected_sum", None, *ROWS, FLOATS, FLOATS, BOOL, BOOL, FLOATS, POINTER)
_banded_sum = _function("banded_sum", LONG, *ROWS, FLOATS, FLOATS, FLOATS, FLOATS)
_spread = _function("spread", None, *ROWS, FLOATS)
_add_energies = _function("add_energies", None, *ROWS, FLOATS, FLOAT, DOUBLES)
_clear_below = _function("clear_below", None, FLOATS, FLOATS, LONG, FLOAT)


def weighted_sum(tensors: Rows, weights: Numbers, result: Row) -> None:
    """Write Σ wᵢxᵢ into `result`."""
    _weighted_sum(tensors, *tensors.shape, weights, result)


def add_inner_products(tensors: Rows, gram: Gram) -> None:
    """Add ⟨xᵢ, xⱼ⟩ to the upper triangle of `gram`; products of float32 are exact in float64."""
    count, width = tensors.shape
    _check_gram(gram, count)
    _add_inner_products(tensors, count, width, width, gram)


def elected_sum(
    tensors: Rows,
    weights: Numbers,
    cuts: Numbers,
    result: Row,
    *,
    weighted_votes: bool,
    normalize: bool,
) -> tuple[int, int]:
    """Write Σ wᵢxᵢ over the i whose wᵢxᵢ has the elected sign.

    Return how many entries have the elected sign, and how many the cuts keep. xᵢ is trimmed first
    to |x| ≥ cuts[i]: 0 keeps everything (and counts zeros too), infinity nothing. Elected is the
    sign of Σ xᵢ, or with `weighted_votes` of Σ wᵢxᵢ; a sum of 0 counts as positive. With
    `normalize` the sum is divided by Σ wᵢ over the same i; it is 0 where those sum up to 0.
    """
    counts, options = (LONG * 2)(), (weighted_votes, normalize)
    _elected_sum(tensors, *tensors.shape, weights, cuts, *options, result, counts)
    return counts[0], counts[1]


def banded_sum(
    tensors: Rows, weights: Numbers, bands: Sequence[tuple[float, float]], result: Row
) -> int:
    """Write Σ wᵢxᵢ over the i with lowᵢ ≤ |xᵢ| ≤ highᵢ; return how many entries are kept."""
    lows, highs = [low for low, _ in bands], [high for _, high in bands]
    return int(_banded_sum(tensors, *tensors.shape, weights, lows, highs, result))


def spread(tensors: Rows, result: Row) -> None:
    """Write each entry's population standard deviation over the experts.

    It is exactly 0 where all are equal, or 2⁷⁵ times smaller than the largest near it.
    """
    _spread(tensors, *tensors.shape, result)


def add_energies(
    tensors: Rows, ranked: Row, cut: float, energies: Float64[Tensor, " experts"]
) -> None:
    """Add to `energies` each expert's Σ xᵢ² over the entries with ranked ≥ cut."""
    _add_energies(tensors, *tensors.shape, ranked, cut, energies)


def clear_below(values: Row, ranked: Row, cut: float) -> None:
    """Set `values` to 0 where ranked < cut."""
    _clear_below(values, ranked, len(values), cut)


# --- The competition of PCB-Merging -----------------------------------------------------------

CLIPPED = (*ROWS, FLOATS, FLOATS, BOOL)
_competition_scores = _function("competition_scores", None, *CLIPPED, FLOATS)
_competition_mean = _function("competition_mean", None, *CLIPPED, FLOATS, FLOATS, FLOAT, FLOATS)


def competition_scores(
    tensors: Rows, lows: Numbers, highs: Numbers, linear: bool, scores: Rows
) -> None:
    """Write each expert's scores; 0 where all its magnitudes are equal, never a negative zero.

    Magnitudes are clipped between lows[i] and highs[i]. `linear` says that tanh(x) is x, to float32
    rounding, for all products that occur.
    """
    _competition_scores(tensors, *tensors.shape, lows, highs, linear, scores)


def competition_mean(
    tensors: Rows,
    lows: Numbers,
    highs: Numbers,
    linear: bool,
    bottoms: Numbers,
    tops: Numbers,
    least_scale: float,
    result: Row,
) -> None:
    """Write Σ sign(dᵢ)Aᵢ·scaleᵢ / max(Σ scaleᵢ, least_scale), Aᵢ being the clipped magnitudes.

    scaleᵢ rises from 0 at a score of bottoms[i] to 1 at tops[i].
    """
    clips = lows, highs, linear
    _competition_mean(tensors, *tensors.shape, *clips, bottoms, tops, least_scale, result)


# --- Buckets: counting numbers by their upper bits --------------------------------------------

BUCKETS = {True: 2**14, False: 2**15}
"""How many buckets there are, by `magnitudes`."""
_LOW_BITS, _MAGNITUDE = 17, 0x7FFFFFFF
_SCRATCH = Scratch()

_count_buckets = _function("count_buckets", None, FLOATS, LONG, BOOL, COUNTS)
_find_between = _function("find_between", LONG, FLOATS, LONG, BOOL, FLOAT, FLOAT, FLOATS)


def count_buckets(values: Row, counts: NDArray[np.int64], *, magnitudes: bool) -> None:
    """Add to `counts` how many values, or magnitudes, fall into each bucket.

    Buckets are in ascending order of what they hold. Negative zeros count as zeros.
    """
    if len(counts) != BUCKETS[magnitudes]:
        raise ValueError(f"There are {BUCKETS[magnitudes]} buckets, not {len(counts)}.")
    _count_buckets(values, len(values), magnitudes, counts)


def bucket_bounds(index: int, *, magnitudes: bool) -> tuple[float, float]:
    """Return the lowest and the highest number in a bucket; infinity instead of NaN."""
    first = (index - (0 if magnitudes else BUCKETS[True])) << _LOW_BITS
    return _number(first), _number(first + (1 << _LOW_BITS) - 1)


def _number(key: int) -> float:
    """Return the float32 whose bits, inverted if it is negative, are the key."""
    bits = key if key >= 0 else key ^ _MAGNITUDE
    value = float(np.array(bits, np.int32).view(np.float32))
    return value if value == value else float("inf" if key >= 0 else "-inf")


def find_between(
    values: Row, low: float, high: float, *, magnitudes: bool
) -> Float32[Tensor, " m"]:
    """Return a copy of the values, or magnitudes, from `low` to `high` that are not 0, in order.

    Zeros are left out because there may be very many of them.
    """
    found = _SCRATCH.take(len(values))
    return found[: _find_between(values, len(values), magnitudes, low, high, found)].clone()


# --- Products of matrices ---------------------------------------------------------------------

MATRIX = (POINTER, LONG, LONG, BOOL)
_SIZES, _OPTIONS = [LONG] * 3, [BOOL] * 3
_multiply = _function("multiply", BOOL, *MATRIX, *MATRIX, *MATRIX, *_SIZES, *_OPTIONS)
_mirror_floats = _function("mirror_in_floats", None, FLOATS, LONG)
_mirror_doubles = _function("mirror_in_doubles", None, DOUBLES, LONG)
_IS_DOUBLE = {torch.float32: False, torch.float64: True}


def multiply(
    left: Float[Tensor, "m k"],
    right: Float[Tensor, "k n"],
    out: Float[Tensor, "m n"],
    *,
    precision: torch.dtype,
    add: bool = False,
    upper: bool = False,
) -> None:
    """Write the product into `out`, or with `add` add it, computed in float32 or float64.

    Each tensor is float32 or float64; factors may have any strides, the rows of `out` are
    contiguous, and `out` is neither factor. With `upper`, for a symmetric product, the entries
    below the diagonal are undefined. Raises MemoryError.
    """
    (m, k), n = left.shape, right.shape[1]
    if k != right.shape[0] or out.shape != (m, n) or (n > 1 and out.stride(1) != 1):
        raise ValueError(f"{(m, k)} x {tuple(right.shape)} do not go into {tuple(out.shape)}.")
    if k == 0 and not add:
        out.zero_()
    tensors = *_matrix(left), *_matrix(right), *_matrix(out)
    if not _multiply(*tensors, m, k, n, _IS_DOUBLE[precision], add, upper):
        raise MemoryError


def _matrix(tensor: Tensor) -> tuple[int, ...]:
    if not tensor.is_cpu or tensor.dtype not in _IS_DOUBLE:
        raise TypeError(
            "Factors and result are float32 or float64 on the CPU, not "
            f"{tensor.dtype} on {tensor.device}."
        )
    return tensor.data_ptr(), *tensor.stride(), _IS_DOUBLE[tensor.dtype]


def mirror(matrix: Float[Tensor, "n n"]) -> None:
    """Copy the upper triangle of a float32 or float64 matrix into the lower one, in place."""
    kernel = _mirror_doubles if matrix.dtype is torch.float64 else _mirror_floats
    kernel(matrix, len(matrix))


# --- Symmetric eigenproblems by way of tridiagonal form ---------------------------------------

_make_tridiagonal = _function(
    "make_tridiagonal", BOOL, DOUBLES, LONG, DOUBLES, LONG, DOUBLES, DOUBLES, DOUBLES
)
_back_transform = _function(
    "back_transform", BOOL, DOUBLES, LONG, LONG, DOUBLES, DOUBLES, LONG, LONG
)
_tridiagonal_values = _function("tridiagonal_values", INT, DOUBLES, DOUBLES, LONG, LONG, DOUBLES)
_tridiagonal_vectors = _function(
    "tridiagonal_vectors", BOOL, DOUBLES, DOUBLES, LONG, DOUBLES, LONG, DOUBLE,
    DOUBLES, LONG,
)  # fmt: skip
_largest_overlap = _function("largest_overlap", DOUBLE, DOUBLES, LONG, LONG, LONG, DOUBLES, DOUBLE)

TOGETHER = 4
"""How many matrices `eigenvalues` solves in the time of one."""
_NO_MEMORY = 1
_LINE, _SPARE = 8, 4
"""Entries of a cache line, and rows beyond the matrix's that the reduction reads as zeros."""


class TridiagonalForm:
    """T = Qᵀ·A·Q of a symmetric matrix A; ValueError if the sizes disagree.

    Attributes:
        reflections: the reflectors that Q is the product of, flat.
        diagonal: n entries.
        off_diagonal: n entries beside the diagonal, of which the last is undefined.
        scales: the reflectors' τ, n entries, of which the last is undefined.
    """

    def __init__(
        self,
        reflections: Float64[Tensor, " m"],
        diagonal: Vector,
        off_diagonal: Vector,
        scales: Vector,
    ) -> None:
        n, sizes = len(diagonal), [len(reflections), len(off_diagonal), len(scales)]
        if sizes != [(n + _SPARE) * _row_length(n), n, n]:
            raise ValueError(f"Arrays of {sizes} entries are not of a form of {n} rows.")
        self.reflections, self.diagonal = reflections, diagonal
        self.off_diagonal, self.scales = off_diagonal, scales

    @classmethod
    def of(cls, matrix: Float64[Tensor, "n n"]) -> TridiagonalForm:
        """Reduce A, of which the upper half is read, as LAPACK's dsytrd does; or MemoryError.

        Sums of squares are taken without scaling: entries must be within 1e±150.
        """
        n, length = len(matrix), _row_length(len(matrix))
        reflections = torch.empty((n + _SPARE) * length, dtype=torch.float64)
        entries = torch.zeros(3, n, dtype=torch.float64).unbind()
        if not _make_tridiagonal(matrix.contiguous(), n, reflections, length, *entries):
            raise MemoryError
        return cls(reflections, *entries)

    def back_transform(self, vectors: Vectors) -> None:
        """Turn vectors z of T, the first n entries of a row each, into A's Q·z; or MemoryError."""
        n = len(self.diagonal)
        form = self.reflections, _row_length(n), n, self.scales
        if not _back_transform(*form, vectors, *vectors.shape):
            raise MemoryError


def _row_length(n: int) -> int:
    """Return the length of a row of reflections: an odd number of cache lines.

    With an even number columns would fall on the same few sets of the cache.
    """
    return _LINE * (-(-n // _LINE) + 1 | 1)


def eigenvalues(forms: Sequence[TridiagonalForm]) -> Float64[Tensor, "forms n"]:
    """Return the eigenvalues of up to `TOGETHER` forms of one size, ascending, a row each.

    Each is exact to float64 rounding of the largest, as LAPACK's dsterf finds it. Raises
    ArithmeticError where there are none (NaN, infinity, entries whose squares overflow), and
    MemoryError.
    """
    diagonals = torch.stack([form.diagonal for form in forms])
    off_diagonals = torch.stack([form.off_diagonal for form in forms])
    count, n = diagonals.shape
    found = torch.empty(count, n, dtype=torch.float64)
    failed = _tridiagonal_values(diagonals, off_diagonals, n, count, found)
    if failed == _NO_MEMORY:
        raise MemoryError
    if failed:
        raise ArithmeticError("No eigenvalues were found: is NaN or infinity in the matrix?")
    return found.sort(dim=1).values


def eigenvectors(
    diagonal: Vector,
    off_diagonal: Float64[Tensor, " m"],
    values: Float64[Tensor, " count"],
    into: Vectors,
) -> None:
    """Write the unit eigenvectors of these eigenvalues into the rows of `into`, n entries each.

    Each costs O(n); two are as orthogonal as their eigenvalues are apart, about
    1e-16·‖T‖/|λᵢ − λⱼ|. Raises MemoryError.
    """
    form, (count, down) = (diagonal, off_diagonal, len(diagonal)), into.shape
    smallest = max(float(torch.cat(form[:2]).abs().max()) * 1e-18, 1e-290)
    if not _tridiagonal_vectors(*form, values, count, smallest, into, down):
        raise MemoryError


def largest_overlap(
    vectors: Vectors, values: Float64[Tensor, " count"], n: int, reach: float
) -> float:
    """Return the largest |zᵢ·zⱼ| of vectors whose values are at most `reach` apart; 0 if none are.

    Vectors are the first n entries of a row each; the values descend.
    """
    return float(_largest_overlap(vectors, n, *vectors.shape, values, reach))
