"""Products and symmetric eigenproblems of matrices: the only place that knows a GPU from a CPU.

On the CPU they are the project's kernels, on one thread, which take float32 as float64 without a
copy (docs/decisions/0014). On a GPU they are torch's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from worker.merging import native


def weighted_sum(
    tensors: Float[Tensor, "experts *shape"], weights: Sequence[float]
) -> Float[Tensor, "*shape"]:
    """Return Σ wᵢxᵢ in float32, summed in the experts' order entry by entry.

    It is no matrix product: BLAS sums in an order that depends on the size.
    """
    if tensors.is_cuda:
        factors = torch.tensor(list(weights), dtype=tensors.dtype, device=tensors.device)
        return torch.einsum("i,i...->...", factors, tensors)
    if _transposed(tensors):
        return weighted_sum(tensors.mT, weights).mT
    result = torch.empty(tensors.shape[1:])
    native.weighted_sum(flat(tensors), weights, result.view(-1))
    return result


def flat(tensors: Float[Tensor, "experts *shape"]) -> Float[Tensor, "experts n"]:
    """Return one contiguous row an expert, without a copy where possible."""
    return tensors.reshape(len(tensors), -1).contiguous()


def _transposed(tensors: Tensor) -> bool:
    """Return whether the transposes can be read without a copy, and the tensors cannot."""
    return tensors.ndim > 2 and not tensors.is_contiguous() and tensors.mT.is_contiguous()


def inner_products(
    tensors: Float[Tensor, "experts *shape"],
) -> Float[NDArray[np.float64], "experts experts"]:
    """Return ⟨xᵢ, xⱼ⟩, float64: the upper triangle, zeros below.

    Products of float32 entries are exact in float64, so that cosines keep what float32 would lose:
    experts of one base lie 1e-3 radians apart, where 1 − cos is 5e-7.
    """
    if tensors.is_cuda:
        wide = tensors.flatten(1).double()
        return (wide @ wide.mT).triu().cpu().numpy()
    if _transposed(tensors):
        return inner_products(tensors.mT)
    found = np.zeros((len(tensors), len(tensors)))
    native.add_inner_products(flat(tensors), found)
    return found


def gram(
    matrix: Float[Tensor, "m n"],
    total: Float[Tensor, "n n"] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "n n"]:
    """Return MᵀM, added to `total` if given; on the CPU only the upper triangle is meaningful.

    In float64 the entries of float32 data are exact to float64 rounding, so that eigenvalues
    resolve singular values down to about 1e-8 of the largest.
    """
    if matrix.is_cuda:
        exact = matrix.to(dtype)
        return exact.mT @ exact if total is None else total.addmm_(exact.mT, exact)
    add = total is not None
    if total is None:
        total = torch.empty((matrix.shape[1], matrix.shape[1]), dtype=dtype)
    if matrix.numel():
        native.multiply(matrix.mT, matrix, total, precision=total.dtype, add=add, upper=True)
    elif not add:
        total.zero_()
    return total


def mirror(upper: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Copy the upper triangle into the lower one, in place, and return the matrix."""
    if upper.is_cuda:
        return upper.copy_(upper.triu() + upper.triu(1).mT)
    native.mirror(upper)
    return upper


def symmetric_product(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "n n"]:
    """Return MᵀM in the matrix's dtype, symmetric to the bit on the CPU."""
    return mirror(gram(matrix, dtype=matrix.dtype))


def product(
    left: Float[Tensor, "m k"], right: Float[Tensor, "k n"], out: Float[Tensor, "m n"] | None = None
) -> Float[Tensor, "m n"]:
    """Return the product in the dtype of the right factor, or written into `out`."""
    if left.is_cuda:
        found = left.to(right.dtype) @ right
        return found if out is None else out.copy_(found)
    if out is None:
        out = right.new_empty((left.shape[0], right.shape[1]))
    if left.shape[1] == 0:
        return out.zero_()
    if out.numel():
        native.multiply(left, right, out, precision=right.dtype)
    return out


def apply(matrix: Float[Tensor, "m n"], factor: Float[Tensor, "n r"]) -> Float[Tensor, "m r"]:
    """Return M·F in float32, computed in the precision of F, float32 or float64."""
    return product(matrix, factor, matrix.new_empty((len(matrix), factor.shape[1])))


def largest_eigenvalue(gram: Float[Tensor, "n n"]) -> float:
    """Return the largest eigenvalue of a Gram matrix, by ten power steps: too low by some percent.

    It takes a tenth of the time of finding all eigenvalues.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(gram), generator=generator, dtype=gram.dtype).to(gram.device)
    for _ in range(10):
        vector = torch.mv(gram, torch.nn.functional.normalize(vector, dim=0))
    return float(vector.norm())


class Eigen(ABC):
    """The eigenvalues of a symmetric matrix, and its leading eigenvectors on demand.

    `arrays` gives all of it as tensors on the CPU, of which `eigen_of` makes an equal one.
    """

    values: Float[Tensor, " n"]
    """All eigenvalues, float64, descending."""

    @abstractmethod
    def vectors(self, count: int) -> Float[Tensor, "n count"]:
        """Return the eigenvectors of the largest eigenvalues as columns, float64."""

    @abstractmethod
    def combined(self, weights: Float[Tensor, " count"]) -> Float[Tensor, "n n"]:
        """Return Σ wᵢ·vᵢvᵢᵀ of the leading eigenvectors; the weights are not negative."""

    @abstractmethod
    def arrays(self) -> dict[str, Tensor]:
        """Return the problem as tensors by name."""


def eigen_of(arrays: Mapping[str, Tensor]) -> Eigen:
    """Return the eigenproblem of its `arrays`."""
    if "thin" in arrays:
        return _Thin(arrays["values"], arrays["thin"])
    if "vectors" in arrays:
        return _All(arrays["values"].flip(-1), arrays["vectors"].flip(-1))
    return _Tridiagonal.of(arrays)


def eigh(grams: Sequence[Float[Tensor, "n n"]]) -> Sequence[Eigen]:
    """Return the eigenproblems of symmetric float64 matrices of one size (upper triangles).

    On the CPU the eigenvalues of a few matrices take the time of one. ArithmeticError if a matrix
    holds NaN or infinity.
    """
    if grams and grams[0].is_cuda:
        return _on_gpu(torch.stack(list(grams)))
    problems = [_Tridiagonal(native.TridiagonalForm.of(gram)) for gram in grams]
    for first in range(0, len(problems), native.TOGETHER):
        some = problems[first : first + native.TOGETHER]
        found = native.eigenvalues([problem.form for problem in some])
        for problem, ascending in zip(some, found, strict=True):
            problem.values = ascending.flip(0)
    return problems


def eigen_of_product(left: Float[Tensor, "m r"], right: Float[Tensor, "r n"]) -> Eigen:
    """Return the eigenproblem of MᵀM of M = L·R, float64, from that of r rows and columns."""
    basis, upper = torch.linalg.qr(right.mT)
    inner = left @ upper.mT  # L·R = inner·basisᵀ
    values, vectors = torch.linalg.eigh(inner.mT @ inner)
    padding = right.shape[1] - len(values)
    return _Thin(torch.nn.functional.pad(values.flip(0), (0, padding)), basis @ vectors.flip(1))


def _on_gpu(grams: Float[Tensor, "k n n"]) -> list[Eigen]:
    """Solve one tensor's problems in a batch; one by one if the batch went wrong.

    cuSOLVER's batched solver has returned vectors that were not orthonormal (pytorch 192483).
    """
    values, vectors = torch.linalg.eigh(grams, UPLO="U")
    error = vectors.mT @ vectors - torch.eye(
        grams.shape[-1], dtype=grams.dtype, device=grams.device
    )
    if grams.numel() and not bool(error.abs().max() < _ORTHOGONAL):
        return [_All(*torch.linalg.eigh(gram, UPLO="U")) for gram in grams]
    return [_All(*both) for both in zip(values, vectors, strict=True)]


class _All(Eigen):
    """An eigenproblem solved whole, by torch."""

    def __init__(self, ascending: Float[Tensor, " n"], vectors: Float[Tensor, "n n"]) -> None:
        self.values = ascending.flip(-1)
        self._vectors = vectors.flip(-1)

    def vectors(self, count: int) -> Float[Tensor, "n count"]:
        return self._vectors[:, :count]

    def arrays(self) -> dict[str, Tensor]:
        return {"values": self.values.cpu(), "vectors": self._vectors.cpu().contiguous()}

    def combined(self, weights: Float[Tensor, " count"]) -> Float[Tensor, "n n"]:
        return symmetric_product((self.vectors(len(weights)) * weights.sqrt()).mT)


class _Thin(Eigen):
    """An eigenproblem of low rank: all eigenvalues but the first few are 0, and have no vectors."""

    def __init__(self, values: Float[Tensor, " n"], vectors: Float[Tensor, "n r"]) -> None:
        self.values, self._vectors = values, vectors

    def vectors(self, count: int) -> Float[Tensor, "n count"]:
        if count > self._vectors.shape[1]:
            raise ValueError(f"{count} vectors of a matrix of rank {self._vectors.shape[1]}.")
        return self._vectors[:, :count]

    def arrays(self) -> dict[str, Tensor]:
        return {"values": self.values.clone(), "thin": self._vectors.contiguous()}

    def combined(self, weights: Float[Tensor, " count"]) -> Float[Tensor, "n n"]:
        return symmetric_product((self.vectors(len(weights)) * weights.sqrt()).mT)


_FORM = ("reflections", "diagonal", "off_diagonal", "scales")
_PADDING = 8
"""Rows of vectors are this much longer, so that they do not all fall on the same cache lines."""
_EPSILON = 2.0**-52
_ORTHOGONAL = 1e-10
"""How far from orthonormal eigenvectors may be."""
_CORRECTABLE, _CORRECTIONS = 1e-3, 3
"""Vectors that are off by up to this are made orthonormal by Newton-Schulz steps: they are
mixtures of vectors whose eigenvalues agree to all digits but a few, and as good as those."""
_ALIKE = 3e-6
"""Weights that differ by less, relatively, are the same."""
_ROUNDINGS = 32
"""By how many roundings of the largest eigenvalue an eigenvalue may be off (22 were seen)."""


class _Tridiagonal(Eigen):
    """An eigenproblem reduced to tridiagonal form, where leading vectors are found one by one.

    torch and numpy find all eigenvectors or none; of a task matrix a part of them is wanted.
    """

    def __init__(self, form: native.TridiagonalForm) -> None:
        self._n = len(form.diagonal)
        self.form = form
        self._kept: Tensor | None = None

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> _Tridiagonal:
        found = cls(native.TridiagonalForm(*(arrays[name] for name in _FORM)))
        found.values = arrays["values"]
        return found

    def arrays(self) -> dict[str, Tensor]:
        return {"values": self.values.clone()} | {
            name: getattr(self.form, name).clone() for name in _FORM
        }

    def vectors(self, count: int) -> Float[Tensor, "n count"]:
        if self._kept is None or len(self._kept) != count:
            self._kept = self._rows(torch.arange(count))
        return self._kept[:, : self._n].mT

    def combined(self, weights: Float[Tensor, " count"]) -> Float[Tensor, "n n"]:
        # Σ wᵢ·vᵢvᵢᵀ = w·I + Σ (wᵢ − w)·vᵢvᵢᵀ: directions of the commonest weight need no vectors.
        every = torch.nn.functional.pad(weights, (0, self._n - len(weights)))
        common = every.median() if self._n else every.sum()
        differing = ((every - common).abs() > _ALIKE * common).nonzero().flatten()
        if 2 * len(differing) > self._n:
            common, differing = every.new_zeros(()), torch.arange(len(weights))
        rows = self._rows(differing)[:, : self._n]
        found = torch.empty((self._n, self._n), dtype=torch.float64)
        if self._n:
            scaled = rows * (every[differing] - common)[:, None]
            native.multiply(rows.mT, scaled, found, precision=torch.float64, upper=True)
        found.diagonal().add_(common)
        return mirror(found)

    def _rows(self, places: Int[Tensor, " count"]) -> Float[Tensor, "count padded"]:
        """Return the eigenvectors of the eigenvalues at these places, one a row."""
        found = self._one_by_one(self.values[places])
        rows = self._divide_and_conquer[places] if found is None else found
        self.form.back_transform(rows)
        return rows

    def _one_by_one(self, values: Float[Tensor, " count"]) -> Float[Tensor, "count padded"] | None:
        """Return the tridiagonal form's eigenvectors of some eigenvalues, which descend.

        None where eigenvalues are too close to each other for that.
        """
        rows = torch.empty((len(values), self._n + _PADDING), dtype=torch.float64)
        if not len(values):
            return rows
        vectors, largest = rows[:, : self._n], float(self.values.abs().max())
        gap = -float(values.diff().max()) if len(values) > 1 else math.inf
        if gap * _CORRECTABLE < _EPSILON * largest:
            return None
        native.eigenvectors(self.form.diagonal, self.form.off_diagonal[: self._n - 1], values, rows)
        # Vectors whose eigenvalues lie further apart are as orthogonal as that.
        reach = _ROUNDINGS * _EPSILON * largest / _ORTHOGONAL
        if native.largest_overlap(rows, values, self._n, reach) <= _ORTHOGONAL:
            return rows
        for _ in range(_CORRECTIONS):
            error = symmetric_product(vectors.mT)
            error.diagonal().sub_(1.0)
            worst = float(error.abs().max())
            if worst <= _ORTHOGONAL:
                return rows
            if not worst <= _CORRECTABLE:
                break
            vectors -= 0.5 * product(error, vectors)
        return None

    @cached_property
    def _divide_and_conquer(self) -> Float[Tensor, "n padded"]:
        """All vectors of the tridiagonal form, by torch, in the order of `values`."""
        below = torch.diag(self.form.off_diagonal[: self._n - 1], -1)
        vectors = torch.linalg.eigh(torch.diag(self.form.diagonal) + below).eigenvectors
        return torch.nn.functional.pad(vectors.mT.flip(0), (0, _PADDING))
