"""Products of matrices of float32 or float64, in either precision."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels.library import INT, LONG, POINTER, function

_multiply = function(
    "multiply", INT,
    POINTER, LONG, LONG, INT, POINTER, LONG, LONG, INT, POINTER, LONG, INT,
    LONG, LONG, LONG, INT, INT, INT,
)  # fmt: skip
_DOUBLES = {torch.float32: 0, torch.float64: 1}


def multiply(
    left: Float[Tensor, "m k"],
    right: Float[Tensor, "k n"],
    out: Float[Tensor, "m n"],
    *,
    precision: torch.dtype,
    add: bool = False,
    upper: bool = False,
) -> None:
    """Write the product into `out`, or add it, computed in float32 or float64.

    All on the CPU, each float32 or float64, factors in any layout; `out` is no factor, its rows
    are contiguous, and below the diagonal of a symmetric product it may be anything if `upper`.
    Raises MemoryError.
    """
    if any(t.is_cuda or t.dtype not in _DOUBLES for t in (left, right, out)):
        described = ", ".join(f"{t.dtype} on {t.device}" for t in (left, right, out))
        raise TypeError(f"Multiplied are float32 and float64 on the CPU, not {described}.")
    (m, k), n = left.shape, right.shape[1]
    if k != right.shape[0] or out.shape != (m, n) or (n > 1 and out.stride(1) != 1):
        raise ValueError(f"{(m, k)} x {tuple(right.shape)} do not go into {tuple(out.shape)}.")
    failed = _multiply(
        left.data_ptr(), left.stride(0), left.stride(1), _DOUBLES[left.dtype],
        right.data_ptr(), right.stride(0), right.stride(1), _DOUBLES[right.dtype],
        out.data_ptr(), out.stride(0), _DOUBLES[out.dtype],
        m, k, n, _DOUBLES[precision], add, upper,
    )  # fmt: skip
    if failed:
        raise MemoryError
