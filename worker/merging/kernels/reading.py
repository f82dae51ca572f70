"""Blocks read from files, widened to float32, and combined while they are in the cache."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels.combining import Combination
from worker.merging.kernels.library import INT, LONG, POINTER, address, function

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


class _Source(ctypes.Structure):
    _fields_ = (("descriptor", INT), ("dtype", INT), ("offset", LONG))


_ROWS = (POINTER, LONG, LONG, LONG)
_read_rows = function("read_rows", LONG, *_ROWS, INT, POINTER, POINTER)
_read_gram = function("read_gram", LONG, *_ROWS, INT, POINTER)
_read_combined = function("read_combined", LONG, *_ROWS, POINTER, POINTER)


class ReadError(Exception):
    """An input could not be read: its number, and an errno (0 where its file ends)."""

    def __init__(self, number: int, code: int) -> None:
        super().__init__(number, code)
        self.number, self.code = number, code


class Sources:
    """A tensor's entries in several files: where they begin, and the dtypes they are stored in."""

    def __init__(self, places: Sequence[tuple[int, torch.dtype, int]]) -> None:
        """Take for each input its file's descriptor, its dtype, and the offset in bytes."""
        listed = [
            _Source(descriptor, _DTYPES[dtype], offset) for descriptor, dtype, offset in places
        ]
        self._sources = (_Source * len(listed))(*listed)

    def read(
        self,
        start: int,
        rows: Float[Tensor, "inputs n"],
        *,
        subtract: bool = False,
        gram: Float[Tensor, "experts experts"] | None = None,
    ) -> int:
        """Fill `rows` with the entries from `start` on; return FINITE and EQUAL, as they hold.

        With `subtract`, the first row is then subtracted from the others. To the upper triangle of
        `gram` are added the rows' inner products, without that of what was subtracted. Half
        precision is widened exactly, float64 is rounded. Raises ReadError.
        """
        where = None if gram is None else address(gram, torch.float64)
        count, width = rows.shape
        return _checked(
            _read_rows(self._sources, count, start, width, subtract, address(rows), where)
        )

    def add_inner_products(
        self, start: int, stop: int, gram: Float[Tensor, "experts experts"], *, subtract: bool
    ) -> int:
        """Add to the upper triangle of `gram` what `read` would; the entries are kept nowhere."""
        count, where = len(self._sources), address(gram, torch.float64)
        return _checked(_read_gram(self._sources, count, start, stop - start, subtract, where))

    def combine(self, start: int, what: Combination, results: Float[Tensor, "scales n"]) -> int:
        """Fill `results` with what the inputs combine to from `start` on.

        Returns FINITE if the inputs are, RESULT_FINITE if the results are. Raises ReadError.
        """
        count, width = len(self._sources), results.shape[1]
        return _checked(
            _read_combined(self._sources, count, start, width, what.pointer, address(results))
        )


def _checked(answer: int) -> int:
    if answer < 0:
        failed, number = divmod(-answer, 2**32)
        raise ReadError(number, failed - 1)
    return answer
