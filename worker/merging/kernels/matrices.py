"""Square matrices: the upper triangle copied into the lower one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels.library import LONG, POINTER, address, function

_mirror = {
    torch.float32: function("mirror_floats", None, POINTER, LONG),
    torch.float64: function("mirror_doubles", None, POINTER, LONG),
}


def mirror(matrix: Float[Tensor, "n n"]) -> None:
    """Copy the upper triangle into the lower one, in place."""
    _mirror[matrix.dtype](address(matrix, matrix.dtype), len(matrix))
