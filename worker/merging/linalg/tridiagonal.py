"""Symmetric eigenproblems on the CPU by LAPACK's own three steps, the last made only in part.

torch and numpy make all eigenvectors or none. Of a task matrix a quarter is wanted, or the values
alone: reduced to tridiagonal form and solved there, they are brought back for as many as are asked
for. LAPACK comes from scipy's public interface for compiled callers, which unlike its Python
functions lets other threads run.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from worker.merging.linalg.blas import cython_lapack

_Array = NDArray[np.float64]
_BLOCK = 64
_REFLECTORS = 65 * _BLOCK
"""What dormtr wants beside a block of columns, in entries (LAPACK's TSIZE)."""
_APART = 8


class Eigenproblem:
    """A symmetric matrix's eigenvalues, and as many of its leading eigenvectors as are wanted."""

    def __init__(self, matrix: Float[Tensor, "n n"]) -> None:
        """Solve for the float64 matrix on the CPU; of a symmetric one half is read.

        The work is 4/3·n³ operations for the tridiagonal form and about as many for its vectors.
        Raises ArithmeticError if LAPACK finds no solution (it is given NaN or infinity).
        """
        n = self._n = len(matrix)
        self._form = _columns(n, n)
        self._form[:, :n] = matrix.numpy()
        self._scales = np.empty(max(1, n - 1))
        diagonal, beside = np.empty(n), np.empty(max(1, n - 1))
        work = np.empty(n * _BLOCK)
        _call("dsytrd", b"U", n, self._form, self._form.shape[1], diagonal, beside, self._scales,
              work, len(work))  # fmt: skip
        self._vectors = _columns(n, n)
        work, whole = np.empty(1 + 4 * n + n**2), np.empty(3 + 5 * n, np.int32)
        _call("dstedc", b"I", n, diagonal, beside, self._vectors, self._vectors.shape[1], work,
              len(work), whole, len(whole))  # fmt: skip
        self.values: Float[Tensor, " n"] = torch.from_numpy(diagonal).flip(0)
        """All eigenvalues, float64, descending."""

    def vectors(self, count: int) -> Float[Tensor, "n count"]:
        """Return the eigenvectors of the `count` largest eigenvalues in columns, float64."""
        # LAPACK's order is ascending.
        chosen = self._vectors[::-1][:count].copy()
        if count and self._n > 1:
            work = np.empty(count * _BLOCK + _REFLECTORS)
            _call("dormtr", b"L", b"U", b"N", self._n, count, self._form, self._form.shape[1],
                  self._scales, chosen, chosen.shape[1], work, len(work))  # fmt: skip
        return torch.from_numpy(chosen)[:, : self._n].mT


def _columns(count: int, length: int) -> _Array:
    """Return room for columns in LAPACK's order, one a row.

    They are a few entries apart: at distances of a power of two they would fall on the same few
    lines of the cache.
    """
    return np.empty((count, length + _APART))


def _call(name: str, *arguments: bytes | int | NDArray[Any]) -> None:
    """Call a LAPACK routine, whose last argument, `info`, is added."""
    info = ctypes.c_int(0)
    _routine(name, len(arguments) + 1)(*map(_address, arguments), ctypes.byref(info))
    if info.value:
        raise ArithmeticError(f"LAPACK's {name} found no eigenvectors (info {info.value}).")


def _address(argument: bytes | int | NDArray[Any]) -> Any:
    if isinstance(argument, bytes):
        return ctypes.c_char_p(argument)
    if isinstance(argument, int):
        return ctypes.byref(ctypes.c_int(argument))
    return ctypes.c_void_p(argument.ctypes.data)


@cache
def _routine(name: str, arguments: int) -> Any:
    capsule = cython_lapack.__pyx_capi__[name]
    get_name, get_pointer = (
        ctypes.pythonapi.PyCapsule_GetName,
        ctypes.pythonapi.PyCapsule_GetPointer,
    )
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    pointer = get_pointer(capsule, get_name(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(pointer)
