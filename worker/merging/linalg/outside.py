"""What task matrices hold outside the common space of their sum (Iso-CTS), by Gram matrices.

Of dᵢ with the columns' part in the space of U = M·F taken away, dᵢ − U·Uᵀ·dᵢ, the Gram matrix is
dᵢᵀdᵢ − Xᵢᵀ·Xᵢ with Xᵢ = Fᵀ·Mᵀdᵢ. The difference is exact to float64 rounding of dᵢᵀdᵢ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.kernels import product
from worker.merging.linalg.products import gram, upper_gram
from worker.merging.linalg.subspaces import Bases, Rows
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
        self._common = whole.short.vectors(rank) / whole.singular_values[:rank]
        return strengths

    def inside(self, with_sum: Float[Tensor, "n n"]) -> Float[Tensor, "c n"]:
        """Return Xᵢ from Mᵀdᵢ."""
        return product(self._common.mT, with_sum)

    def outside(
        self, squares: Float[Tensor, "n n"], inside: Float[Tensor, "c n"]
    ) -> Float[Tensor, "n n"]:
        """Return the Gram matrix of what is outside, the upper half, from dᵢᵀdᵢ and Xᵢ."""
        return squares - upper_gram(inside)

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
        self._inside.append(product(inside, self.factors[-1].double()))
        return strengths

    def measured(self, matrices: Float[Tensor, "experts rows n"]) -> Float[Tensor, "rows o"]:
        """Return the rows of [d₁·F₁ … d_N·F_N], float64: what is to be taken away is known."""
        return torch.cat(self._own(matrices, torch.float64), dim=1)

    def left_of(self, squares: Float[Tensor, "o o"]) -> Float[Tensor, "r r"]:
        """Return ÛᵀÛ: U and what is outside it are orthogonal, of U_own it is a difference."""
        inside = torch.cat(self._inside, dim=1)
        whole = torch.eye(sum(self.ranks), dtype=torch.float64, device=squares.device)
        whole[len(inside) :, len(inside) :] = squares - gram(inside)
        return whole

    def times(self, factor: Float[Tensor, "r n"]) -> Rows:
        """Return what makes rows of Û·F: of U the rest of U_own is taken away beforehand."""
        exact = torch.float64 if torch.float64 in {f.dtype for f in self.factors} else factor.dtype
        common, own = factor.double().tensor_split([self.ranks[0]])
        inside = torch.cat(self._inside, dim=1)
        of_sum = product(self._common, common - product(inside, own)).to(exact)
        own = own.to(exact)

        def rows(matrices: Tensor) -> Tensor:
            total = weighted_sum(matrices, self._weights, normalize=False)
            result = product(total, of_sum)
            return result.add_(product(torch.cat(self._own(matrices, exact), dim=1), own)).float()

        return rows

    def _own(self, matrices: Float[Tensor, "experts rows n"], dtype: torch.dtype) -> list[Tensor]:
        factors = self.factors[1:]
        return [product(m, f.to(dtype)) for m, f in zip(matrices, factors, strict=True)]
