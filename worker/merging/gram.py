"""The survey that sums the experts' Gram matrix: all that the geometric methods must know."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from typing import Self

import numpy as np

from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.inner_products import (
    Doubles,
    add_inner_products,
    cosines,
    described,
    norms_of,
    symmetric,
)


class GramSurvey(Survey):
    """⟨xᵢ, xⱼ⟩ over all entries of what `merge` gets, in float64."""

    inner_products: Doubles

    def __init__(self, experts: int) -> None:
        self.inner_products = np.zeros((experts, experts))

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

    @cached_property
    def gram(self) -> Doubles:
        """⟨xᵢ, xⱼ⟩, symmetric to the bit."""
        return symmetric(self.inner_products)

    @cached_property
    def norms(self) -> Doubles:
        """The experts' norms."""
        return norms_of(self.gram)

    @cached_property
    def cosines(self) -> Doubles:
        """The cosines between experts, 0 where one is zero."""
        return cosines(self.gram)

    def describe(self, about: About) -> None:
        """Put norms and cosines into the diagnostics."""
        about.diagnostics.update(described(self.gram))
