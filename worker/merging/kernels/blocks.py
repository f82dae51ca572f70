"""What the engine does to every block: subtracts the base, adds it again, refuses NaN."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels.library import INT, LONG, POINTER, address, floats, function

FINITE, EQUAL, RESULT_FINITE = 1, 2, 4
"""What kernels say of a block: all entries are finite; all rows hold the same bits; results are."""

_all_finite = function("all_finite", INT, POINTER, LONG)
_add_scaled = function("add_scaled", INT, POINTER, POINTER, LONG, POINTER, LONG, POINTER)


def all_finite(values: Float[Tensor, " n"]) -> bool:
    """Say whether no entry is NaN or infinite."""
    return bool(_all_finite(address(values), len(values)))


def add_scaled(
    base: Float[Tensor, " n"],
    scales: Sequence[float],
    values: Float[Tensor, " n"],
    results: Float[Tensor, "scales n"],
) -> bool:
    """Write base + scale·values into a row of `results` for each scale; say if all is finite.

    To add nothing changes nothing, not even the sign of a zero.
    """
    finite = _add_scaled(
        address(base), floats(scales), len(scales), address(values), len(base), address(results)
    )
    return bool(finite)
