"""Decompositions agree with a float64 SVD wherever float32 data determine them."""

import pytest
import torch

from worker.merging.linalg.products import gram
from worker.merging.linalg.svd import decompose, decompose_all, decompose_gram, decompose_grams

SHAPES = [(1, 1), (1, 7), (7, 1), (24, 24), (40, 12), (12, 40), (200, 64), (64, 200), (700, 130)]


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_those_of_float64(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = torch.linalg.svdvals(matrix.double())
    assert torch.allclose(decompose(matrix).singular_values, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_bases_are_orthonormal_and_give_the_matrix_back(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    spectrum = decompose(matrix)
    rank = min(shape)
    u, v = spectrum.bases(rank)
    assert u.shape == (shape[0], rank)
    assert v.shape == (shape[1], rank)
    identity = torch.eye(rank)
    assert torch.dist(u.T @ u, identity) < 2e-6 * rank
    assert torch.dist(v.T @ v, identity) < 2e-6 * rank
    again = (u.double() * spectrum.singular_values) @ v.double().T
    assert torch.dist(again, matrix.double()) < 2e-6 * matrix.norm()


@pytest.mark.parametrize("shape", [(300, 150), (150, 300), (200, 200)])
def test_small_singular_values_are_resolved_below_float32(matrix_with, shape):
    values = torch.logspace(0, -5, 100, dtype=torch.float64)
    matrix = matrix_with(*shape, values)
    exact = torch.linalg.svd(matrix.double(), full_matrices=False)
    spectrum = decompose(matrix)
    # An error of 1e-16 in σ² is one of 1e-16 / (2 · 1e-5) in the smallest σ.
    assert torch.allclose(spectrum.singular_values[:100], exact.S[:100], rtol=0, atol=1e-10)
    u, v = spectrum.bases(100)
    agreement = (u.double() * exact.U[:, :100]).sum(0) * (v.double() * exact.Vh[:100].T).sum(0)
    assert (1 - agreement).abs().max() < 1e-6


def test_a_batch_is_decomposed_as_its_members():
    batch = torch.randn(3, 160, 40, generator=torch.Generator().manual_seed(3))
    together = decompose(batch)
    for index, matrix in enumerate(batch):
        alone = decompose(matrix)
        assert torch.allclose(together.singular_values[index], alone.singular_values, rtol=1e-12)
    u, v = together.bases(5)
    assert u.shape == (3, 160, 5)
    assert v.shape == (3, 40, 5)


def assert_same_directions(ours, theirs, tolerance):
    """Columns are the same to rounding, and but for their signs."""
    cosines = (ours * theirs).sum(0) / (ours.norm(dim=0) * theirs.norm(dim=0))
    assert torch.allclose(cosines.abs(), torch.ones_like(cosines), rtol=0, atol=tolerance)


@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize("shape", [(7, 40), (90, 160), (160, 90), (0, 150), (150, 0)])
def test_several_are_decomposed_as_each_alone(shape, count):
    matrices = torch.randn(count, *shape, generator=torch.Generator().manual_seed(7))
    found = list(decompose_all(matrices))
    assert len(found) == count
    for matrix, together in zip(matrices, found, strict=True):
        alone = decompose(matrix)
        assert torch.allclose(together.singular_values, alone.singular_values, rtol=1e-12, atol=0)
        rank = min(shape)
        for ours, theirs in zip(together.bases(rank), alone.bases(rank), strict=True):
            assert_same_directions(ours, theirs, 1e-6)


def test_several_gram_matrices_are_decomposed_as_each_alone():
    squares = [
        gram(torch.randn(90, 60, generator=torch.Generator().manual_seed(i))) for i in range(6)
    ]
    for square, together in zip(squares, decompose_grams(iter(squares)), strict=True):
        alone = decompose_gram(square)
        assert torch.allclose(together.singular_values, alone.singular_values, rtol=1e-12, atol=0)
        assert_same_directions(together.short.vectors(9), alone.short.vectors(9), 1e-12)


@pytest.mark.parametrize("shape", [(30, 20), (300, 140)])
def test_zeros_and_no_directions_are_no_special_case(shape):
    spectrum = decompose(torch.zeros(shape))
    assert torch.equal(spectrum.singular_values, torch.zeros(min(shape), dtype=torch.float64))
    u, v = spectrum.bases(0)
    assert u.shape == (shape[0], 0)
    assert v.shape == (shape[1], 0)


@pytest.mark.parametrize("shape", [(5, 3), (9000, 130), (130, 260)])
def test_gram_matrices_are_exact_and_symmetric_to_the_bit(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    squares = gram(matrix)
    expected = matrix.double().T @ matrix.double()
    assert squares.dtype == torch.float64
    assert torch.equal(squares, squares.T)
    assert torch.allclose(squares, expected, rtol=1e-13, atol=1e-11)


def test_the_matrix_is_not_written_to():
    matrix = torch.randn(150, 140)
    before = matrix.clone()
    decompose(matrix).bases(30)
    assert torch.equal(matrix, before)
