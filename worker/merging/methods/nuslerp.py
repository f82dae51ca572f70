"""NuSLERP (mergekit): SLERP at t = w₂/(w₁+w₂), of the whole tensor or of its vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from app.contract.catalogue.parameter_space import NuSlerp
from worker.merging.combines import Entrywise, Linear
from worker.merging.linalg.sphere import Doubles, cosines, slerp_coefficients
from worker.merging.method import Block, Reduction, State, Steps, Subject, merges
from worker.merging.reductions import InnerProducts

_LEAST_SINE = 1e-7
"""Under this a float64 cosine cannot tell the angle from 0, or from π."""


@merges(NuSlerp)
def nuslerp(x: Subject, p: NuSlerp) -> Steps:
    """Combine the two tensors as they are, not made unit vectors, by the angle between them.

    The angle is that of the tensors, or of their vectors along an axis: the first or the last.
    """
    if p.axis is None or len(x.shape) < 2:
        first, second = _coefficients((yield InnerProducts()), x.weights)
        return Linear([float(first), float(second)])
    columns = (yield ColumnProducts()) if p.axis == 0 else None

    def combine(block: Block) -> torch.Tensor:
        one, other = block.tensors
        first, second = _coefficients(
            columns if columns is not None else _grams(block.tensors, -1), x.weights
        )
        if columns is None:
            first, second = first[..., None], second[..., None]
        merged: torch.Tensor = one * torch.from_numpy(first).float()
        return merged.addcmul_(other, torch.from_numpy(second).float())

    return Entrywise(combine)


@dataclass(frozen=True)
class ColumnProducts(Reduction):
    """The inner products of the vectors along the first axis: a 2 x 2 Gram matrix a column."""

    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Add those of a block of rows."""
        self.join(state, {"grams": _grams(block.tensors, 0)})

    def finish(self, state: State, subject: Subject) -> Doubles:
        """Return (*columns, 2, 2), float64."""
        found: Doubles = state["grams"]
        return found


def _grams(tensors: torch.Tensor, axis: int) -> Doubles:
    """Return the two tensors' Gram matrices of the vectors along an axis: (..., 2, 2), float64."""
    one, other = tensors.double()
    products = [(one * one).sum(axis), (one * other).sum(axis), (other * other).sum(axis)]
    first, cross, second = (found.numpy() for found in products)
    return np.stack([first, cross, cross, second], -1).reshape(*first.shape, 2, 2)


def _coefficients(grams: Doubles, weights: tuple[float, ...]) -> tuple[Doubles, Doubles]:
    t = weights[1] / (weights[0] + weights[1])
    return slerp_coefficients(cosines(grams)[..., 0, 1], t, least_sine=_LEAST_SINE)
