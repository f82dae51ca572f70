"""Linear combinations of inputs, Σ cᵢxᵢ, and what they become."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels.library import INT, LONG, POINTER, address, floats, function

_combine_rows = function("combine_rows", INT, POINTER, LONG, LONG, LONG, POINTER, POINTER)


class _Fields(ctypes.Structure):
    _fields_ = (
        ("coefficients", POINTER),
        ("scales", POINTER),
        ("outputs", LONG),
        ("subtracted", INT),
        ("apart", INT),
        ("copy_equal", INT),
    )


class Combination:
    """The coefficients of a combination, and what becomes of it, as kernels take it."""

    def __init__(
        self,
        coefficients: Sequence[float],
        scales: Sequence[float] = (1.0,),
        *,
        subtracted: bool,
        apart: bool = False,
        copy_equal: bool = False,
    ) -> None:
        """Say what to make of inputs.

        With `subtracted` the first of them is the base W₀, the others are xᵢ − W₀, and there is a
        result W₀ + λ·Σ cᵢ(xᵢ − W₀) for each λ in `scales`, of which to add 0 changes nothing, not
        even the sign of a zero; or with `apart` two results, W₀ and Σ cᵢ(xᵢ − W₀). Else there is
        one result, Σ cᵢxᵢ, or with `copy_equal` the entry itself where it has the same bits in all
        inputs.
        """
        if apart and not subtracted:
            raise ValueError("Without a base that is subtracted there is nothing to tell apart.")
        self.inputs = len(coefficients) + subtracted
        self.outputs = 2 if apart else len(scales)
        # Kept, as the structure only says where they are.
        self._coefficients, self._scales = floats(coefficients), floats(scales)
        self._fields = _Fields(
            ctypes.addressof(self._coefficients),
            ctypes.addressof(self._scales),
            len(scales),
            subtracted,
            apart,
            copy_equal,
        )
        self.pointer = ctypes.byref(self._fields)

    def check(self, inputs: int, outputs: int) -> None:
        """Raise ValueError unless it is of so many inputs and results."""
        if (self.inputs, self.outputs) != (inputs, outputs):
            raise ValueError(
                f"A combination of {self.inputs} inputs to {self.outputs} results was asked for of "
                f"{inputs} inputs to {outputs}."
            )


def combine_rows(
    rows: Float[Tensor, "inputs n"],
    start: int,
    what: Combination,
    results: Float[Tensor, "scales m"],
) -> bool:
    """Fill `results` with what rows combine to from entry `start` on; say if all is finite."""
    (count, stride), width = rows.shape, results.shape[1]
    what.check(count, len(results))
    if not 0 <= start <= stride - width:
        raise IndexError(f"{width} entries from {start} on are not in rows of {stride}.")
    where = address(rows) + start * rows.itemsize
    return bool(_combine_rows(where, count, stride, width, what.pointer, address(results)))
