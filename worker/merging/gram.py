"""The survey that sums the experts' Gram matrix: all that the geometric methods must know."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Self

import torch

from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.inner_products import add_inner_products, cosines, norms_of, rounded_list


class GramSurvey(Survey):
    """⟨xᵢ, xⱼ⟩ over all entries of what `merge` gets, in float64."""

    inner_products: torch.Tensor

    def __init__(self, experts: int) -> None:
        self.inner_products = torch.zeros(experts, experts, dtype=torch.float64)

    @property
    def question(self) -> Hashable:
        """It asks the same of all blocks."""
        return type(self), len(self.inner_products)

    def add(self, inputs: MergeInputs) -> None:
        """Add the block's inner products."""
        add_inner_products(inputs.tensors, self.inner_products)

    def join(self, later: Self) -> None:
        """Add those of later blocks."""
        self.inner_products += later.inner_products

    @property
    def gram(self) -> torch.Tensor:
        """⟨xᵢ, xⱼ⟩, symmetric to the bit."""
        return self.inner_products.triu() + self.inner_products.triu(1).mT

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
