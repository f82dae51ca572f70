"""NuSLERP (mergekit): SLERP at t = w₂/(w₁+w₂), of the whole tensor or of its vectors."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Self

import numpy as np
import torch

from app.contract.catalogue.parameter_space import NuSlerp
from worker.merging.gram import GramSurvey
from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.inner_products import Doubles, cosines
from worker.merging.linalg.sphere import slerp_coefficients

_LEAST_SINE = 1e-7
"""Under this a float64 cosine cannot tell the angle from 0, or from π."""
_PAIRS = ((0, 0), (0, 1), (1, 0), (1, 1))

Coefficients = tuple[torch.Tensor, torch.Tensor]


class ColumnSurvey(Survey):
    """The inner products of the vectors along the first axis: the Gram matrix of each column."""

    def __init__(self, columns: tuple[int, ...]) -> None:
        self.gram = np.zeros((*columns, 2, 2))

    @property
    def question(self) -> Hashable:
        """It asks the same of all blocks."""
        return type(self), self.gram.shape

    def add(self, inputs: MergeInputs) -> None:
        """Add those of a block of rows."""
        self.gram += _grams(inputs.tensors, 0)

    def join(self, later: Self) -> None:
        """Add those of later rows."""
        self.gram += later.gram


def survey(
    about: About, parameters: NuSlerp, finished: GramSurvey | ColumnSurvey | None
) -> Survey | Coefficients | None:
    """Return the coefficients of both models, one pair for all entries or one a column."""
    if parameters.axis == -1:
        return None
    by_column = parameters.axis == 0 and len(about.shape) > 1
    if finished is None:
        return ColumnSurvey(about.shape[1:]) if by_column else GramSurvey(about.experts)
    if isinstance(finished, GramSurvey):
        finished.describe(about)
    return _coefficients(finished.gram, about.weights)


def merge(
    inputs: MergeInputs, parameters: NuSlerp, coefficients: Coefficients | None
) -> torch.Tensor:
    """Return the combination of the two tensors as they are, not made unit vectors."""
    if coefficients is None:
        pair = _coefficients(_grams(inputs.tensors, -1), inputs.weights)
        coefficients = pair[0].unsqueeze(-1), pair[1].unsqueeze(-1)
    first, second = (c.to(inputs.tensors) for c in coefficients)
    return (inputs.tensors[0] * first).addcmul_(inputs.tensors[1], second)


def _grams(tensors: torch.Tensor, axis: int) -> Doubles:
    """Return the two tensors' Gram matrices of the vectors along an axis: (..., 2, 2), float64."""
    wide = tensors.double()
    products = torch.stack([(wide[i] * wide[j]).sum(axis) for i, j in _PAIRS], -1)
    return products.view(*products.shape[:-1], 2, 2).numpy()


def _coefficients(grams: Doubles, weights: tuple[float, ...]) -> Coefficients:
    t = weights[1] / (weights[0] + weights[1])
    cosine = cosines(grams)[..., 0, 1]
    first, second = slerp_coefficients(cosine, t, least_sine=_LEAST_SINE)
    return torch.as_tensor(first), torch.as_tensor(second)
