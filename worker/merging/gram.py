"""The survey that sums the experts' Gram matrix: all that the geometric methods must know."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Self

import torch

from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.inner_products import cosines, inner_products, norms_of, rounded_list


class GramSurvey(Survey):
    """⟨xᵢ, xⱼ⟩ over all entries of what `merge` gets, in float64."""

    def __init__(self, experts: int) -> None:
        self.gram = torch.zeros(experts, experts, dtype=torch.float64)

    @property
    def question(self) -> Hashable:
        """It asks the same of all blocks."""
        return type(self), len(self.gram)

    def add(self, inputs: MergeInputs) -> None:
        """Add the block's inner products."""
        self.gram += inner_products(inputs.tensors)

    def join(self, later: Self) -> None:
        """Add those of later blocks."""
        self.gram += later.gram

    @property
    def norms(self) -> torch.Tensor:
        """The experts' norms."""
        return norms_of(self.gram)

    @property
    def cosines(self) -> torch.Tensor:
        """The cosines between experts, 0 where one is zero."""
        return cosines(self.gram)

    def describe(self, about: About) -> None:
        """Put norms and cosines, the experts' interference by direction, into the diagnostics."""
        about.diagnostics["norms"] = self.norms.tolist()
        about.diagnostics["cosines"] = rounded_list(self.cosines)
