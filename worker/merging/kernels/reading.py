"""Blocks read from files, widened to float32, and combined while they are in the cache."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from worker.merging.kernels.combining import Combination
from worker.merging.kernels.library import INT, LONG, POINTER, address, function

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


class _Source(ctypes.Structure):
    _fields_ = (("descriptor", INT), ("dtype", INT), ("offset", LONG))


class _Inputs(ctypes.Structure):
    _fields_ = (("sources", POINTER), ("count", LONG), ("subtract", INT), ("gram", POINTER))


_read_rows = function("read_rows", LONG, POINTER, LONG, LONG, POINTER)
_read_combined = function("read_combined", LONG, POINTER, LONG, LONG, POINTER, POINTER)


class ReadError(Exception):
    """An input could not be read: its number, and an errno (0 where its file ends)."""

    def __init__(self, number: int, code: int) -> None:
        super().__init__(number, code)
        self.number, self.code = number, code


class Sources:
    """A tensor's entries in several files: where they begin, and the dtypes they are stored in.

    What is read says FINITE if all entries are, EQUAL if all inputs have the same bits. Half
    precision is widened exactly, float64 is rounded. Reads raise ReadError.
    """

    def __init__(self, places: Sequence[tuple[int, torch.dtype, int]], *, subtract: bool) -> None:
        """Take for each input its file's descriptor, its dtype, and the offset in bytes.

        With `subtract` the first is the base, and subtracted from the others as they are read.
        """
        listed = [
            _Source(descriptor, _DTYPES[dtype], offset) for descriptor, dtype, offset in places
        ]
        self._sources = (_Source * len(listed))(*listed)
        self._subtract = subtract

    def read(
        self, start: int, rows: Float[Tensor, "inputs n"], gram: NDArray[np.float64] | None = None
    ) -> int:
        """Fill `rows` with the entries from `start` on; return FINITE and EQUAL, as they hold.

        To the upper triangle of `gram` are added the rows' inner products, without that of what
        was subtracted.
        """
        if len(rows) != len(self._sources):
            raise ValueError(f"{len(self._sources)} inputs do not fit into {len(rows)} rows.")
        inputs = self._inputs(gram)
        return _checked(_read_rows(inputs, start, rows.shape[1], address(rows)))

    def add_inner_products(self, start: int, stop: int, gram: NDArray[np.float64]) -> int:
        """Add to `gram` what `read` would; the entries are kept nowhere."""
        inputs = self._inputs(gram)
        return _checked(_read_combined(inputs, start, stop - start, None, None))

    def combine(
        self,
        start: int,
        what: Combination,
        results: Float[Tensor, "scales n"],
        gram: NDArray[np.float64] | None = None,
    ) -> int:
        """Fill `results` with what the inputs combine to from `start` on; `gram` is as for `read`.

        Returns FINITE and EQUAL, as they hold, and RESULT_FINITE if the results are.
        """
        what.check(len(self._sources), len(results))
        inputs, width = self._inputs(gram), results.shape[1]
        return _checked(_read_combined(inputs, start, width, what.pointer, address(results)))

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
