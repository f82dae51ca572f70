"""Polar factors are exact, and Newton-Schulz follows its polynomial and stays continuous."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.merging.linalg.ops import apply, gram
from worker.merging.linalg.orthogonal import (
    NEWTON_SCHULZ,
    complement,
    isometry,
    newton_schulz,
    orthogonalizers,
    polar,
)
from worker.merging.linalg.spectrum import spectra_of

SHAPES = [(1, 1), (9, 9), (30, 8), (300, 40), (140, 140), (400, 150)]
WAYS = ("polar", "newton_schulz")


def orthogonal(matrix, how):
    (factor,) = orthogonalizers([gram(matrix)], [len(matrix)], how)
    return apply(matrix, factor)


def exact_polar(matrix):
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ vh


def exact_newton_schulz(matrix):
    x = matrix.double() / matrix.double().norm()
    for a, b, c in NEWTON_SCHULZ:
        squares = x @ x.T
        x = a * x + (b * squares + c * squares @ squares) @ x
    return x


def scalar_newton_schulz(value):
    for a, b, c in NEWTON_SCHULZ:
        value = a * value + b * value**3 + c * value**5
    return value


def randn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nearly_coinciding(rows, count, gap):
    """Unit columns, two of which each point the same way but for `gap`."""
    shared = randn(rows, count // 2, seed=4)
    matrix = torch.cat([shared, shared], 1) + gap * randn(rows, count, seed=5)
    return torch.nn.functional.normalize(matrix, dim=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_polar_factor_is_that_of_a_float64_svd(shape):
    matrix = randn(*shape) + 3 * torch.eye(*shape)
    exact = exact_polar(matrix)
    found = orthogonal(matrix, "polar")
    assert found.dtype == torch.float32
    assert torch.dist(found.double(), exact) < 1e-6 * exact.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_is_its_polynomial(shape):
    matrix = randn(*shape, seed=2)
    exact = exact_newton_schulz(matrix)
    assert torch.dist(orthogonal(matrix, "newton_schulz").double(), exact) < 1e-6 * exact.norm()


@pytest.mark.parametrize("values", [[3.0, 2.0, 1.0], [1.0] * 5, [1.0, 1.0, 1e-3], [1.0, 1e-4]])
@pytest.mark.parametrize("shape", [(12, 12), (40, 12), (400, 150)])
def test_directions_that_are_missing_stay_missing(matrix_with, shape, values):
    matrix, rank = matrix_with(*shape, values), len(values)
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = orthogonal(matrix, "polar").double()
    assert torch.dist(found, u[:, :rank] @ vh[:rank]) < 1e-5
    found, exact = orthogonal(matrix, "newton_schulz").double(), exact_newton_schulz(matrix)
    # What is under 1e-7 of the largest is left out; the polynomial would magnify it 490 times.
    assert torch.dist(found, exact) < 5e-5 * exact.norm()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("shape", [(6, 6), (300, 140), (5, 0), (0, 5), (0, 0)])
def test_zeros_stay_zeros(how, shape):
    found = orthogonal(torch.zeros(shape), how)
    assert found.shape == shape
    assert not found.any()


def test_the_isometry_has_the_leading_directions_alone(matrix_with):
    matrix = matrix_with(40, 12, [4.0, 3.0, 2.0, 1.0])
    (spectrum,) = spectra_of([gram(matrix)])
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    for rank in (0, 2, 4):
        found = apply(matrix, isometry(spectrum, rank)).double()
        assert torch.dist(found, u[:, :rank] @ vh[:rank]) < 1e-5


def test_several_are_made_orthonormal_as_each_alone():
    matrices = [randn(rows, 20, seed=rows) for rows in (20, 60, 90, 30, 25)]
    for how, alone in (("polar", polar), ("newton_schulz", lambda s, _: newton_schulz(s))):
        grams = [gram(matrix) for matrix in matrices]
        factors = orthogonalizers(grams, [len(matrix) for matrix in matrices], how)
        for matrix, factor in zip(matrices, factors, strict=True):
            (spectrum,) = spectra_of([gram(matrix)])
            assert torch.equal(factor, alone(spectrum, len(matrix)))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 20), more=st.integers(0, 20), seed=st.integers(0, 10**6))
def test_the_polar_factor_is_orthonormal_and_commutes_with_rotations(n, more, seed):
    matrix = randn(n + more, n, seed=seed) + 8 * torch.eye(n + more, n)
    rotation, _ = torch.linalg.qr(randn(n, n, seed=seed + 1))
    found = orthogonal(matrix, "polar")
    assert torch.dist(found.T @ found, torch.eye(n)) < 1e-4
    assert torch.dist(orthogonal(matrix @ rotation, "polar"), found @ rotation) < 1e-4


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("how", WAYS)
def test_scale_does_not_matter(how, scale):
    matrix = randn(60, 20, seed=6)
    scaled = orthogonal(scale * matrix, how)
    assert torch.dist(scaled, orthogonal(matrix, how)) < 1e-5 * scaled.norm()


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
def test_the_polar_factor_stays_exact_where_columns_nearly_coincide(gap):
    matrix = nearly_coinciding(300, 80, gap)
    exact = exact_polar(matrix)
    # float64 Gram matrices resolve a gap of 1e-4 to 1e-16 / 1e-8.
    close = 1e-6 + 1e-15 / gap**2
    assert torch.dist(orthogonal(matrix, "polar").double(), exact) < close * exact.norm()


@pytest.mark.parametrize("shape", [(300, 60), (150, 150)])
def test_newton_schulz_does_not_magnify_where_columns_nearly_coincide(shape):
    matrix, noise = nearly_coinciding(*shape, 1e-4), randn(*shape, seed=7)
    changed = matrix + 1e-6 * noise * matrix.norm() / noise.norm()
    found = orthogonal(matrix, "newton_schulz")
    assert torch.dist(found, orthogonal(changed, "newton_schulz")) < 1e-4 * found.norm()


def test_newton_schulz_sends_singular_values_where_methods_md_says():
    between = [scalar_newton_schulz(float(v)) for v in torch.linspace(0.01, 1, 2000)]
    assert min(between) > 0.9775
    assert max(between) < 1.032
    assert scalar_newton_schulz(1e-3) == pytest.approx(0.47, abs=0.01)
    assert scalar_newton_schulz(1e-6) < 1e-3


@pytest.mark.parametrize(("rows", "count"), [(1, 0), (1, 1), (7, 0), (7, 7), (7, 3), (90, 61)])
def test_a_complement_is_all_that_is_orthogonal(rows, count):
    basis, _ = torch.linalg.qr(randn(rows, count, seed=6).double())
    whole = torch.cat([basis, complement(basis)], dim=1)
    assert torch.dist(whole.T @ whole, torch.eye(rows, dtype=torch.float64)) < 1e-13 * rows
