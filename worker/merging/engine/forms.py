"""The forms in which an expert comes: in full, or as a change of the base's tensors (LoRA).

Kernels read what is stored, and add the change to it block by block: whoever reads a tensor need
not know its form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from app.contract.tensors import TensorHeader
from app.planning import cost
from app.sources.adapters import LowRankTensor
from worker.merging import native

ReadPart = Callable[[TensorHeader, int, int], torch.Tensor]
"""Returns entries of a stored tensor, flat, float32."""


def change_of(header: TensorHeader, read: ReadPart, start: int, stop: int) -> native.LowRank | None:
    """Return what is added to the stored entries `start` to `stop` of a tensor; None if nothing."""
    if not isinstance(header, LowRankTensor):
        return None
    columns = header.numel // header.shape[0]
    first, last = start // columns, -(-stop // columns)
    left, right = _factors(header, read, first, last)
    factors = None
    if header.magnitude is not None:
        norms = _norms(header, read, left, right, first)
        factors = read(header.magnitude, first, last) / norms
    return native.LowRank(left, right, header.scaling, first_row=first, factors=factors)


def factors_of(header: TensorHeader, read: ReadPart) -> tuple[torch.Tensor, torch.Tensor]:
    """Return L and R, float64, whose product L·R is added to the base's matrix."""
    assert isinstance(header, LowRankTensor)
    left, right = _factors(header, read, 0, header.shape[0])
    return header.scaling * left.double(), right.double()


def _factors(
    header: LowRankTensor, read: ReadPart, first: int, last: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of the left factor, and the right one."""
    if header.transposed:
        left = _matrix(header.a, read)[:, first:last].T.contiguous()
        return left, _matrix(header.b, read).T.contiguous()
    return _matrix(header.b, read, first, last), _matrix(header.a, read)


def _matrix(
    header: TensorHeader, read: ReadPart, first: int = 0, last: int | None = None
) -> torch.Tensor:
    """Return rows of a factor; the dimensions after the first are one."""
    rows = header.shape[0]
    columns = header.numel // rows
    return read(header, first * columns, (rows if last is None else last) * columns).view(
        -1, columns
    )


def _norms(
    header: LowRankTensor, read: ReadPart, left: torch.Tensor, right: torch.Tensor, first: int
) -> torch.Tensor:
    """Return the norm of each changed row, as DoRA divides by it."""
    columns = right.shape[1]
    norms = torch.empty(len(left))
    at_once = max(1, cost.BLOCK_ENTRIES // columns)
    for row in range(0, len(left), at_once):
        some = slice(row, min(row + at_once, len(left)))
        place = (first + some.start) * columns, (first + some.stop) * columns
        stored = read(header.weight, *place).view(-1, columns)
        changed = stored + header.scaling * (left[some] @ right)
        norms[some] = changed.double().norm(dim=1)
    return norms
