"""The compiled kernels, called on the calling thread without the interpreter's lock.

Written in C (the files beside this one) and compiled when the project is installed. What they add
up in float32 is added entry by entry in the order of the experts, so results depend neither on
where blocks begin nor on the processor's instruction set. Products of matrices and tridiagonal
forms depend on the instruction set too (docs/decisions/0014).

Tensors are contiguous float32 on the CPU unless a docstring says otherwise; others raise TypeError.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from worker.merging.memory import Scratch

# --- The library, and how it is called --------------------------------------------------------

Array = torch.Tensor | NDArray[Any]
FLOAT, DOUBLE, INT, LONG = ctypes.c_float, ctypes.c_double, ctypes.c_int32, ctypes.c_int64
POINTER = ctypes.c_void_p

# The flags in /proc/cpuinfo of a processor with all instructions of x86-64's second to fourth level
# (the System V psABI's), beyond those of the level before.
_LEVELS = {
    "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    "v2": {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"},
}


def builds() -> list[Path]:
    """Return the builds of the library that this processor can run, the best first."""
    folder, machine = Path(__file__).parent, platform.machine()
    names = [f"native_{machine}"]
    if machine == "x86_64":
        has = _instructions()
        levels: list[str] = []
        for level, needed in reversed(_LEVELS.items()):
            if not needed <= has:
                break
            levels.insert(0, level)
        names = [f"native_{machine}_{level}" for level in levels]
    return [path for name in names if (path := folder / f"{name}.so").exists()]


def address(array: Array, dtype: torch.dtype | type[np.generic] = torch.float32) -> int:
    """Return the address of an array's entries; TypeError if a kernel cannot take them."""
    if isinstance(array, torch.Tensor):
        if array.dtype is dtype and array.is_contiguous() and not array.is_cuda:
            return array.data_ptr()
    elif array.dtype == dtype and array.flags.c_contiguous:
        return array.ctypes.data
    raise TypeError(f"A kernel takes contiguous {dtype} in memory, not {array.dtype}.")


def floats(numbers: Iterable[float]) -> Any:
    """Return numbers as an array of C floats."""
    listed = tuple(numbers)
    return (FLOAT * len(listed))(*listed)


def _doubles(tensor: Tensor) -> int:
    return address(tensor, torch.float64)


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


def _digest() -> str:
    """Return the digest of the C sources, as setup.py compiles it into each build."""
    whole = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.[ch]")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def _instructions() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Return a kernel, given the C types of its result and its arguments."""
    found: Any = getattr(_library(), name)
    found.restype, found.argtypes = result, arguments
    called: Callable[..., Any] = found
    return called


ALIGNED = 2**14
"""Blocks cut at multiples of this many entries give the long sums that one block would."""

_ROWS = (POINTER, LONG, LONG)
"""Rows of entries: their address, how many rows, how many entries in each."""


# --- Every block: base, scales, NaN and infinity ----------------------------------------------

FINITE, EQUAL, RESULT_FINITE = 1, 2, 4
"""What was found in a block: all entries are finite; all inputs have the same bits; all results are
finite."""

_all_finite = _function("all_finite", INT, POINTER, LONG)
_add_scaled = _function("add_scaled", INT, POINTER, POINTER, LONG, POINTER, LONG, POINTER)


def all_finite(values: Float[Tensor, " n"]) -> bool:
    """Return whether no entry is NaN or infinite."""
    return bool(_all_finite(address(values), len(values)))


def add_scaled(
    base: Float[Tensor, " n"],
    scales: Sequence[float],
    values: Float[Tensor, " n"],
    results: Float[Tensor, "scales n"],
) -> bool:
    """Write base + scale·values into a row of `results` for each scale.

    Return whether all results are finite. Where scale·values is 0 the base is copied, with the sign
    of its zeros.
    """
    finite = _add_scaled(
        address(base), floats(scales), len(scales), address(values), len(base), address(results)
    )
    return bool(finite)


# --- Linear combinations of rows, in memory or as they are read -------------------------------


class _CombinationFields(ctypes.Structure):
    _fields_ = (
        ("coefficients", POINTER),
        ("scales", POINTER),
        ("outputs", LONG),
        ("subtracted", INT),
        ("apart", INT),
        ("copy_equal", INT),
    )


class Combination:
    """The coefficients of a linear combination of inputs, and what becomes of the sum."""

    def __init__(
        self,
        coefficients: Sequence[float],
        scales: Sequence[float] = (1.0,),
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
        self.inputs = len(coefficients) + subtracted
        self.outputs = 2 if apart else len(scales)
        # Kept alive: the structure holds their addresses only.
        self._coefficients, self._scales = floats(coefficients), floats(scales)
        self._fields = _CombinationFields(
            ctypes.addressof(self._coefficients),
            ctypes.addressof(self._scales),
            len(scales),
            subtracted,
            apart,
            copy_equal,
        )
        self.pointer = ctypes.byref(self._fields)

    def check(self, inputs: int, outputs: int) -> None:
        """Raise ValueError unless the combination has so many inputs and results."""
        if (self.inputs, self.outputs) != (inputs, outputs):
            raise ValueError(
                f"A combination of {self.inputs} inputs to {self.outputs} results was called with "
                f"{inputs} inputs and room for {outputs} results."
            )


_combine_rows = _function("combine_rows", INT, POINTER, LONG, LONG, LONG, POINTER, POINTER)


def combine_rows(
    rows: Float[Tensor, "inputs n"],
    start: int,
    combination: Combination,
    results: Float[Tensor, "outputs m"],
) -> bool:
    """Fill `results` with the combination of rows from `start` on; return whether it is finite."""
    (count, stride), width = rows.shape, results.shape[1]
    combination.check(count, len(results))
    if not 0 <= start <= stride - width:
        raise IndexError(f"{width} entries from {start} on are not in rows of {stride}.")
    first = address(rows) + start * rows.itemsize
    return bool(_combine_rows(first, count, stride, width, combination.pointer, address(results)))


_STORED = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


class _Source(ctypes.Structure):
    _fields_ = (("descriptor", INT), ("dtype", INT), ("offset", LONG))


class _Inputs(ctypes.Structure):
    _fields_ = (("sources", POINTER), ("count", LONG), ("subtract", INT), ("gram", POINTER))


_read_rows = _function("read_rows", LONG, POINTER, LONG, LONG, POINTER)
_read_combined = _function("read_combined", LONG, POINTER, LONG, LONG, POINTER, POINTER)


class ReadError(Exception):
    """An input could not be read: its number, and the errno (0 where its file ends)."""

    def __init__(self, number: int, code: int) -> None:
        super().__init__(number, code)
        self.number, self.code = number, code


class Sources:
    """The entries of one tensor in several files, read as float32.

    Half precision is widened exactly, float64 is rounded. Each read returns FINITE if all entries
    are, plus EQUAL if all inputs have the same bits, and raises ReadError. With `gram` it also adds
    the inner products of the rows, except the base that was subtracted, to the upper triangle.
    """

    def __init__(self, places: Sequence[tuple[int, torch.dtype, int]], *, subtract: bool) -> None:
        """Take each input's file descriptor, stored dtype and offset in bytes.

        With `subtract` the first input is the base: it is subtracted from the others on reading.
        """
        listed = [
            _Source(descriptor, _STORED[dtype], offset) for descriptor, dtype, offset in places
        ]
        self._sources = (_Source * len(listed))(*listed)
        self._subtract = subtract

    def read(
        self, start: int, rows: Float[Tensor, "inputs n"], gram: NDArray[np.float64] | None = None
    ) -> int:
        """Fill `rows` with the entries from `start` on."""
        if len(rows) != len(self._sources):
            raise ValueError(f"{len(self._sources)} inputs do not fit into {len(rows)} rows.")
        inputs = self._inputs(gram)
        return _checked(_read_rows(inputs, start, rows.shape[1], address(rows)))

    def add_inner_products(self, start: int, stop: int, gram: NDArray[np.float64]) -> int:
        """Add to `gram` what `read` would; keep no entries."""
        inputs = self._inputs(gram)
        return _checked(_read_combined(inputs, start, stop - start, None, None))

    def combine(
        self,
        start: int,
        combination: Combination,
        results: Float[Tensor, "outputs n"],
        gram: NDArray[np.float64] | None = None,
    ) -> int:
        """Fill `results` with the combination of the entries from `start` on.

        Return RESULT_FINITE as well if all results are finite.
        """
        combination.check(len(self._sources), len(results))
        inputs, width = self._inputs(gram), results.shape[1]
        return _checked(_read_combined(inputs, start, width, combination.pointer, address(results)))

    def _inputs(self, gram: NDArray[np.float64] | None) -> Any:
        experts = len(self._sources) - self._subtract
        if gram is not None and gram.shape != (experts, experts):
            raise ValueError(f"Inner products of {experts} rows do not fit into {gram.shape}.")
        where = None if gram is None else address(gram, np.float64)
        sources = ctypes.addressof(self._sources)
        return ctypes.byref(_Inputs(sources, len(self._sources), self._subtract, where))


def _checked(answer: int) -> int:
    if answer < 0:
        failed, number = divmod(-answer, 2**32)
        raise ReadError(number, failed - 1)
    return answer


# --- Sums over the experts, entry by entry ----------------------------------------------------

_weighted_sum = _function("weighted_sum", None, *_ROWS, POINTER, POINTER)
_add_inner_products = _function("add_inner_products", None, *_ROWS, POINTER)
_elected_sum = _function("elected_sum", None, *_ROWS, POINTER, POINTER, INT, INT, POINTER, POINTER)
_banded_sum = _function("banded_sum", LONG, *_ROWS, POINTER, POINTER, POINTER, POINTER)
_spread = _function("spread", None, *_ROWS, POINTER)
_add_energies = _function("add_energies", None, *_ROWS, POINTER, FLOAT, POINTER)
_clear_below = _function("clear_below", None, POINTER, POINTER, LONG, FLOAT)


def weighted_sum(
    tensors: Float[Tensor, "experts n"], weights: Sequence[float], result: Float[Tensor, " n"]
) -> None:
    """Write Σ wᵢxᵢ into `result`."""
    _weighted_sum(address(tensors), *tensors.shape, floats(weights), address(result))


def add_inner_products(tensors: Float[Tensor, "experts n"], gram: NDArray[np.float64]) -> None:
    """Add ⟨xᵢ, xⱼ⟩ to the upper triangle of `gram`; products of float32 are exact in float64."""
    if gram.shape != (len(tensors), len(tensors)):
        raise ValueError(f"Inner products of {len(tensors)} rows do not fit into {gram.shape}.")
    _add_inner_products(address(tensors), *tensors.shape, address(gram, np.float64))


def elected_sum(
    tensors: Float[Tensor, "experts n"],
    weights: Sequence[float],
    cuts: Sequence[float],
    result: Float[Tensor, " n"],
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
    counts = (LONG * 2)()
    _elected_sum(
        address(tensors), *tensors.shape, floats(weights), floats(cuts), weighted_votes, normalize,
        address(result), counts,
    )  # fmt: skip
    return counts[0], counts[1]


def banded_sum(
    tensors: Float[Tensor, "experts n"],
    weights: Sequence[float],
    bands: Sequence[tuple[float, float]],
    result: Float[Tensor, " n"],
) -> int:
    """Write Σ wᵢxᵢ over the i with lowᵢ ≤ |xᵢ| ≤ highᵢ; return how many entries are kept."""
    lows, highs = floats(low for low, _ in bands), floats(high for _, high in bands)
    kept: int = _banded_sum(
        address(tensors), *tensors.shape, floats(weights), lows, highs, address(result)
    )
    return kept


def spread(tensors: Float[Tensor, "experts n"], result: Float[Tensor, " n"]) -> None:
    """Write each entry's population standard deviation over the experts.

    0 exactly where all are equal. Worked out of differences to the first expert, so that no square
    overflows; what is 2⁷⁵ times smaller than the largest near it counts as 0.
    """
    _spread(address(tensors), *tensors.shape, address(result))


def add_energies(
    tensors: Float[Tensor, "experts n"],
    ranked: Float[Tensor, " n"],
    cut: float,
    energies: Float[Tensor, " experts"],
) -> None:
    """Add to `energies` (float64) each expert's Σ xᵢ² over the entries with ranked ≥ cut."""
    _add_energies(address(tensors), *tensors.shape, address(ranked), cut, _doubles(energies))


def clear_below(values: Float[Tensor, " n"], ranked: Float[Tensor, " n"], cut: float) -> None:
    """Set `values` to 0 where ranked < cut."""
    _clear_below(address(values), address(ranked), len(values), cut)


# --- The competition of PCB-Merging -----------------------------------------------------------

_competition_scores = _function(
    "competition_scores", None, *_ROWS, POINTER, POINTER, INT, POINTER
)  # fmt: skip
_competition_mean = _function(
    "competition_mean", None, *_ROWS, POINTER, POINTER, INT, POINTER, POINTER, FLOAT, POINTER
)


def competition_scores(
    tensors: Float[Tensor, "experts n"],
    lows: Sequence[float],
    highs: Sequence[float],
    linear: bool,
    scores: Float[Tensor, "experts n"],
) -> None:
    """Write each expert's scores; 0 where all its magnitudes are equal, never a negative zero.

    Magnitudes are clipped between lows[i] and highs[i]. `linear` says that tanh(x) is x, to float32
    rounding, for all products that occur.
    """
    _competition_scores(
        address(tensors), *tensors.shape, floats(lows), floats(highs), linear, address(scores)
    )


def competition_mean(
    tensors: Float[Tensor, "experts n"],
    lows: Sequence[float],
    highs: Sequence[float],
    linear: bool,
    bottoms: Sequence[float],
    tops: Sequence[float],
    least_scale: float,
    result: Float[Tensor, " n"],
) -> None:
    """Write Σ sign(dᵢ)Aᵢ·scaleᵢ / max(Σ scaleᵢ, least_scale), Aᵢ being the clipped magnitudes.

    scaleᵢ rises from 0 at a score of bottoms[i] to 1 at tops[i].
    """
    _competition_mean(
        address(tensors), *tensors.shape, floats(lows), floats(highs), linear,
        floats(bottoms), floats(tops), least_scale, address(result),
    )  # fmt: skip


# --- Buckets: counting numbers by their upper bits --------------------------------------------

BUCKETS = {True: 2**14, False: 2**15}
"""How many buckets there are, by `magnitudes`."""
_LOW_BITS, _MAGNITUDE = 17, 0x7FFFFFFF

_count_buckets = _function("count_buckets", None, POINTER, LONG, INT, POINTER)
_find_between = _function("find_between", LONG, POINTER, LONG, INT, FLOAT, FLOAT, POINTER)


def count_buckets(
    values: Float[Tensor, " n"], counts: NDArray[np.int64], *, magnitudes: bool
) -> None:
    """Add to `counts` how many values, or magnitudes, fall into each bucket.

    Buckets are in ascending order of what they hold. Negative zeros count as zeros.
    """
    if len(counts) != BUCKETS[magnitudes]:
        raise ValueError(f"There are {BUCKETS[magnitudes]} buckets, not {len(counts)}.")
    _count_buckets(address(values), len(values), magnitudes, address(counts, np.int64))


def bucket_bounds(index: int, *, magnitudes: bool) -> tuple[float, float]:
    """Return the lowest and the highest number in a bucket; infinity instead of NaN."""
    first = (index - (0 if magnitudes else BUCKETS[True])) << _LOW_BITS
    return _number(first), _number(first + (1 << _LOW_BITS) - 1)


def _number(key: int) -> float:
    """Return the float32 whose bits, inverted if it is negative, are the key."""
    bits = key if key >= 0 else key ^ _MAGNITUDE
    value = float(np.array(bits, np.int32).view(np.float32))
    return value if value == value else float("inf" if key >= 0 else "-inf")


_SCRATCH = Scratch()


def find_between(
    values: Float[Tensor, " n"], low: float, high: float, *, magnitudes: bool
) -> Float[Tensor, " m"]:
    """Return a copy of the values, or magnitudes, from `low` to `high` that are not 0, in order.

    Zeros are left out because there may be very many of them.
    """
    found = _SCRATCH.take(len(values))
    count = _find_between(address(values), len(values), magnitudes, low, high, address(found))
    return found[:count].clone()


# --- Products of matrices ---------------------------------------------------------------------

_multiply = _function(
    "multiply", INT,
    POINTER, LONG, LONG, INT, POINTER, LONG, LONG, INT, POINTER, LONG, INT,
    LONG, LONG, LONG, INT, INT, INT,
)  # fmt: skip
_mirror_floats = _function("mirror_floats", None, POINTER, LONG)
_mirror_doubles = _function("mirror_doubles", None, POINTER, LONG)
_IS_DOUBLE = {torch.float32: 0, torch.float64: 1}


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
    if any(t.is_cuda or t.dtype not in _IS_DOUBLE for t in (left, right, out)):
        described = ", ".join(f"{t.dtype} on {t.device}" for t in (left, right, out))
        raise TypeError(f"Factors and result are float32 or float64 on the CPU, not {described}.")
    (m, k), n = left.shape, right.shape[1]
    if k != right.shape[0] or out.shape != (m, n) or (n > 1 and out.stride(1) != 1):
        raise ValueError(f"{(m, k)} x {tuple(right.shape)} do not go into {tuple(out.shape)}.")
    if k == 0 and not add:
        out.zero_()
    failed = _multiply(
        left.data_ptr(), left.stride(0), left.stride(1), _IS_DOUBLE[left.dtype],
        right.data_ptr(), right.stride(0), right.stride(1), _IS_DOUBLE[right.dtype],
        out.data_ptr(), out.stride(0), _IS_DOUBLE[out.dtype],
        m, k, n, _IS_DOUBLE[precision], add, upper,
    )  # fmt: skip
    if failed:
        raise MemoryError


def mirror(matrix: Float[Tensor, "n n"]) -> None:
    """Copy the upper triangle of a float32 or float64 matrix into the lower one, in place."""
    if matrix.dtype is torch.float64:
        _mirror_doubles(_doubles(matrix), len(matrix))
    else:
        _mirror_floats(address(matrix), len(matrix))


# --- Symmetric eigenproblems by way of tridiagonal form ---------------------------------------

_make_tridiagonal = _function(
    "make_tridiagonal", INT, POINTER, LONG, LONG, POINTER, LONG, POINTER, POINTER, POINTER
)
_back_transform = _function(
    "back_transform", INT, POINTER, LONG, LONG, POINTER, POINTER, LONG, LONG
)
_tridiagonal_values = _function(
    "tridiagonal_values", INT, POINTER, POINTER, LONG, LONG, POINTER
)  # fmt: skip
_tridiagonal_vectors = _function(
    "tridiagonal_vectors", INT, POINTER, POINTER, LONG, POINTER, LONG, DOUBLE, POINTER, LONG
)
_largest_overlap = _function(
    "largest_overlap", DOUBLE, POINTER, LONG, LONG, LONG, POINTER, DOUBLE
)  # fmt: skip

TOGETHER = 4
"""How many matrices `eigenvalues` solves in the time of one."""
_NO_MEMORY = 1
_LINE, _SPARE = 8, 4
"""Entries of a cache line, and rows beyond the matrix's that the reduction reads as zeros."""


class TridiagonalForm:
    """T = Qᵀ·A·Q of a symmetric float64 matrix A on the CPU, as LAPACK's dsytrd makes it.

    Sums of squares are taken without scaling: entries must be within 1e±150. The four arrays are
    all there is to it: `from_arrays` takes them again. Raises MemoryError.

    Attributes:
        reflections: the reflectors that Q is the product of, float64, flat.
        diagonal: n entries, float64.
        off_diagonal: n entries beside the diagonal, float64, of which the last is undefined.
        scales: the reflectors' τ, n entries, float64, of which the last is undefined.
    """

    def __init__(self, matrix: Float[Tensor, "n n"]) -> None:
        """Reduce the matrix, whose upper half is read and whose rows are contiguous."""
        if matrix.is_cuda or matrix.dtype is not torch.float64:
            raise TypeError(
                f"The matrix must be float64 on the CPU, not {matrix.dtype} on {matrix.device}."
            )
        n = len(matrix)
        if n > 1 and matrix.stride(1) != 1:
            raise ValueError(f"Rows must be contiguous, entries are {matrix.stride(1)} apart.")
        reflections = torch.empty((n + _SPARE) * _row_length(n), dtype=torch.float64)
        diagonal, off_diagonal, scales = torch.zeros(3, n, dtype=torch.float64)
        self._set(reflections, diagonal, off_diagonal, scales)
        failed = _make_tridiagonal(
            matrix.data_ptr(), matrix.stride(0), n, _doubles(reflections), _row_length(n),
            _doubles(diagonal), _doubles(off_diagonal), _doubles(scales),
        )  # fmt: skip
        if failed:
            raise MemoryError

    @classmethod
    def from_arrays(
        cls,
        reflections: Float[Tensor, " m"],
        diagonal: Float[Tensor, " n"],
        off_diagonal: Float[Tensor, " n"],
        scales: Float[Tensor, " n"],
    ) -> TridiagonalForm:
        """Return the form that has these four arrays, all float64; ValueError if sizes disagree."""
        n = len(diagonal)
        sizes = [len(reflections), len(off_diagonal), len(scales)]
        if sizes != [(n + _SPARE) * _row_length(n), n, n]:
            raise ValueError(f"Arrays of {sizes} entries are not of a form of {n} rows.")
        form = cls.__new__(cls)
        form._set(reflections, diagonal, off_diagonal, scales)
        return form

    def _set(
        self, reflections: Tensor, diagonal: Tensor, off_diagonal: Tensor, scales: Tensor
    ) -> None:
        self.reflections, self.scales = reflections, scales
        self.diagonal, self.off_diagonal = diagonal, off_diagonal

    def back_transform(self, vectors: Float[Tensor, "count padded"]) -> None:
        """Turn vectors z of T, the first n entries of a row each, into A's Q·z, in place.

        All float64. Raises MemoryError.
        """
        n = len(self.diagonal)
        failed = _back_transform(
            _doubles(self.reflections), _row_length(n), n, _doubles(self.scales),
            _doubles(vectors), len(vectors), vectors.shape[1],
        )  # fmt: skip
        if failed:
            raise MemoryError


def _row_length(n: int) -> int:
    """Return the length of a row of reflections: an odd number of cache lines.

    With an even number columns would fall on the same few sets of the cache.
    """
    length = _LINE * (-(-n // _LINE) + 1)
    return length if length // _LINE % 2 else length + _LINE


def eigenvalues(forms: Sequence[TridiagonalForm]) -> Float[Tensor, "forms n"]:
    """Return the eigenvalues of up to `TOGETHER` forms of one size, ascending, a row each, float64.

    Each is exact to float64 rounding of the largest, as LAPACK's dsterf finds it. Raises
    ArithmeticError where there are none (NaN, infinity, entries whose squares overflow), and
    MemoryError.
    """
    n = len(forms[0].diagonal)
    found = torch.empty(len(forms), n, dtype=torch.float64)
    pointers = POINTER * len(forms)
    failed = _tridiagonal_values(
        pointers(*(_doubles(form.diagonal) for form in forms)),
        pointers(*(_doubles(form.off_diagonal) for form in forms)),
        n, len(forms), _doubles(found),
    )  # fmt: skip
    if failed == _NO_MEMORY:
        raise MemoryError
    if failed:
        raise ArithmeticError("No eigenvalues were found: is NaN or infinity in the matrix?")
    return found.sort(dim=1).values


def eigenvectors(
    diagonal: Float[Tensor, " n"],
    off_diagonal: Float[Tensor, " m"],
    values: Float[Tensor, " count"],
    into: Float[Tensor, "count padded"],
) -> None:
    """Write the unit eigenvectors of these eigenvalues into the rows of `into`, n entries each.

    All float64. By twisted factorisations (Dhillon and Parlett 2004) of T − λ: each costs O(n), and
    two are as orthogonal as their eigenvalues are apart, about 1e-16·‖T‖/|λᵢ − λⱼ|. Raises
    MemoryError.
    """
    n = len(diagonal)
    largest = float(
        torch.maximum(diagonal.abs().max(), off_diagonal.abs().max() if n > 1 else diagonal[0])
    )
    smallest = max(largest * 1e-18, 1e-290)
    failed = _tridiagonal_vectors(
        _doubles(diagonal), _doubles(off_diagonal), n, _doubles(values), len(values), smallest,
        _doubles(into), into.shape[1],
    )  # fmt: skip
    if failed:
        raise MemoryError


def largest_overlap(
    vectors: Float[Tensor, "count padded"],
    values: Float[Tensor, " count"],
    n: int,
    reach: float,
) -> float:
    """Return the largest |zᵢ·zⱼ| of vectors whose values are at most `reach` apart; 0 if none are.

    The vectors are the first n entries of a row each, the values descend, all float64.
    """
    found: float = _largest_overlap(
        _doubles(vectors), n, len(vectors), vectors.shape[1], _doubles(values), reach
    )
    return found
