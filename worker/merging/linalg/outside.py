"""What task matrices hold outside the common space of their sum (Iso-CTS), by Gram matrices.

Of dᵢ with the columns' part in the space of U = M·F taken away, dᵢ − U·Uᵀ·dᵢ, the Gram matrix is
dᵢᵀdᵢ − Xᵢᵀ·Xᵢ with Xᵢ = Fᵀ·Mᵀdᵢ. The difference is exact to float64 rounding of dᵢᵀdᵢ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.kernels import add_symmetric, product
from worker.merging.linalg.subspaces import Bases
from worker.merging.linalg.sums import weighted_sum
from worker.merging.linalg.svd import Decomposition, is_delicate


class OutsideBases(Bases):
    """The common directions of a sum of tall matrices, then each one's own outside them."""

    def __init__(self, shape: tuple[int, int], most: int, weights: Sequence[float]) -> None:
        """Make room for up to `most` directions of the sum with these weights, and of its parts."""
        super().__init__(shape, most, whole=False)
        self._weights = tuple(weights)
        self._inside: list[Tensor] = []

    def add_common(self, whole: Decomposition, strengths: Float[Tensor, " r"]) -> Tensor:
        """Add the first r directions of the sum, as `add` does."""
        strengths = self.add(whole, strengths)
        rank = len(strengths)
        # An error of float32 in X would be one of its root in a singular value outside.
        self._common = whole.short_vectors(rank) / whole.singular_values[:rank]
        return strengths

    def inside(self, with_sum: Float[Tensor, "n n"]) -> Float[Tensor, "c n"]:
        """Return Xᵢ from Mᵀdᵢ."""
        return product(self._common.mT, with_sum)

    def outside(
        self, squares: Float[Tensor, "n n"], inside: Float[Tensor, "c n"]
    ) -> Float[Tensor, "n n"]:
        """Return the Gram matrix of what is outside, the upper half, from dᵢᵀdᵢ and Xᵢ."""
        rest = torch.zeros_like(squares)
        add_symmetric(inside, rest)
        return torch.sub(squares, rest, out=rest)

    def add_own(
        self,
        outside: Decomposition,
        inside: Float[Tensor, "c n"],
        everything: Float[Tensor, " n"],
        strengths: Float[Tensor, " r"],
    ) -> Tensor:
        """Add the first r directions outside, as `add` does. `everything` are dᵢ's own values.

        The rows of U_own are dᵢ·F − U·(X·F): where its two parts nearly cancel, float32 would show.
        """
        strengths = self.add(outside, strengths)
        rank = len(strengths)
        if rank and is_delicate(everything, outside.singular_values[:rank]):
            self.factors[-1] = self.factors[-1].double()
        factor = self.factors[-1]
        self._inside.append(product(inside, factor.double()).to(factor.dtype))
        return strengths

    def rows(self, matrices: Float[Tensor, "experts rows n"]) -> Float[Tensor, "rows r"]:
        """Return the rows of Û that belong to these rows of the matrices."""
        exact = (
            torch.float64 if any(f.dtype == torch.float64 for f in self.factors) else torch.float32
        )
        common, *own = (factor.to(exact) for factor in self.factors)
        total = weighted_sum(matrices, self._weights, normalize=False).to(exact)
        first = product(total, common)
        parts = [
            product(matrix.to(exact), factor).sub_(product(first, inside.to(exact)))
            for matrix, factor, inside in zip(matrices, own, self._inside, strict=True)
        ]
        return torch.cat([first, *parts], dim=1).float()
