"""Polar factors are exact, and Newton-Schulz follows its polynomial and stays continuous."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.merging.linalg.newton_schulz import (
    COEFFICIENTS,
    newton_schulz,
    newton_schulz_multiplier,
)
from worker.merging.linalg.orthogonal import complement
from worker.merging.linalg.polar import polar_factor, procrustes_svd
from worker.merging.linalg.products import gram

SHAPES = [(1, 1), (9, 9), (30, 8), (8, 30), (300, 40), (40, 300), (140, 140), (400, 150)]


def exact_polar(matrix):
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ vh


def exact_newton_schulz(matrix):
    x = matrix.double() / matrix.double().norm()
    for a, b, c in COEFFICIENTS:
        squares = x @ x.T
        x = a * x + (b * squares + c * squares @ squares) @ x
    return x


def scalar_newton_schulz(value):
    for a, b, c in COEFFICIENTS:
        value = a * value + b * value**3 + c * value**5
    return value


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("orthogonalize", [polar_factor, procrustes_svd])
def test_the_polar_factor_is_that_of_a_float64_svd(shape, orthogonalize):
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(shape, generator=generator) + 3 * torch.eye(*shape)
    factor = orthogonalize(matrix)
    assert factor.dtype == torch.float32
    exact = exact_polar(matrix)
    assert torch.dist(factor.double(), exact) < 1e-5 * exact.norm()


def unit_columns(rows, count, generator):
    return torch.linalg.qr(torch.randn(rows, count, dtype=torch.float64, generator=generator))[0]


@settings(max_examples=60, deadline=None)
@given(
    first=st.integers(1, 40),
    others=st.integers(0, 20),
    more=st.integers(0, 30),
    outside=st.sampled_from([1.0, 0.1, 1e-2, 1e-3]),
    length=st.sampled_from([0.1, 1.0, 30.0]),
    noise=st.sampled_from([0.0, 1e-7, 3e-7, 1e-6]),
    seed=st.integers(0, 2**16),
)
def test_columns_known_to_be_orthonormal_save_work_and_change_nothing(
    first, others, more, outside, length, noise, seed
):
    """Also where the others are nearly within their span, and they are so but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    others = min(others, first - 1)
    rows = first + others + more
    frame = unit_columns(rows, first + others, generator)
    start, rest = frame[:, :first], outside * frame[:, first:]
    rest += start @ torch.randn(first, others, dtype=torch.float64, generator=generator)
    start = start + noise * torch.randn(rows, first, dtype=torch.float64, generator=generator)
    matrix = torch.cat([start, length * rest], dim=1).float()
    result = polar_factor(matrix, gram(matrix), first).double()
    identity = torch.eye(first + others, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix.double())
    if values[-1] < 1e-5 * values[0]:
        return  # near the floor under which a direction is rounding
    smallest = min(1.0, float(values[-1]))
    # A Gram matrix resolves what is 1e-16 of its largest eigenvalue.
    resolved = 4e-15 * float(values[0] / values[-1]) ** 2
    assert (result.T @ result - identity).abs().max() < 2e-6 + resolved
    # As near to the polar factor as what is not orthonormal in the columns lets it be.
    off = float(gram(matrix[:, :first]).dist(identity[:first, :first]))
    assert torch.dist(result, exact_polar(matrix)) < (1e-6 + off * length) / smallest + resolved


@pytest.mark.parametrize("noise", [1e-6, 1.5e-6])
def test_columns_within_the_span_of_the_orthonormal_ones_are_no_rank_of_their_own(noise):
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        start = unit_columns(60, 40, generator)
        mixed = start @ torch.randn(40, 10, dtype=torch.float64, generator=generator)
        start = start + noise * (torch.rand(60, 40, generator=generator) - 0.5)
        matrix = torch.cat([start, mixed], dim=1).float()
        values = torch.linalg.svdvals(polar_factor(matrix, gram(matrix), 40).double())
        assert ((values - 1).abs() < 1e-5).logical_or(values < 1e-5).all()


def test_columns_said_to_be_orthonormal_that_are_not_are_not_believed():
    matrix = torch.randn(60, 40, generator=torch.Generator().manual_seed(5))
    exact = exact_polar(matrix)
    assert torch.dist(polar_factor(matrix, gram(matrix), 30).double(), exact) < 1e-5 * exact.norm()


@pytest.mark.parametrize(("rows", "count"), [(1, 0), (1, 1), (7, 0), (7, 7), (7, 3), (90, 61)])
def test_a_complement_is_all_that_is_orthogonal(rows, count):
    basis = unit_columns(rows, count, torch.Generator().manual_seed(6))
    whole = torch.cat([basis, complement(basis)], dim=1)
    assert torch.dist(whole.T @ whole, torch.eye(rows, dtype=torch.float64)) < 1e-13 * rows


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_is_its_polynomial(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    exact = exact_newton_schulz(matrix)
    assert torch.dist(newton_schulz(matrix).double(), exact) < 1e-5 * exact.norm()


@pytest.mark.parametrize("shape", [(30, 8), (225, 150), (400, 150)])
def test_newton_schulz_by_its_gram_matrix_is_the_same(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    exact = exact_newton_schulz(matrix)
    by_gram = matrix @ newton_schulz_multiplier(gram(matrix))
    assert torch.dist(by_gram.double(), exact) < 1e-5 * exact.norm()


def test_newton_schulz_sends_singular_values_where_methods_md_says():
    between = [scalar_newton_schulz(float(v)) for v in torch.linspace(0.01, 1, 2000)]
    assert min(between) > 0.9775
    assert max(between) < 1.032
    assert scalar_newton_schulz(1e-3) == pytest.approx(0.47, abs=0.01)
    assert scalar_newton_schulz(1e-6) < 1e-3


@pytest.mark.parametrize("shape", [(300, 60), (60, 300), (150, 150)])
def test_newton_schulz_does_not_magnify_where_columns_nearly_coincide(shape):
    generator = torch.Generator().manual_seed(4)
    shared = torch.randn(shape[0], shape[1] // 2, generator=generator)
    own = torch.randn(shape, generator=generator)
    matrix = torch.nn.functional.normalize(torch.cat([shared, shared], 1) + 1e-4 * own, dim=0)
    noise = torch.randn(shape, generator=generator)
    changed = matrix + 1e-6 * noise * matrix.norm() / noise.norm()
    moved = torch.dist(newton_schulz(matrix), newton_schulz(changed)) / newton_schulz(matrix).norm()
    assert moved < 1e-4


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
def test_the_polar_factor_is_no_worse_than_the_svd_where_columns_nearly_coincide(gap):
    generator = torch.Generator().manual_seed(5)
    shared = torch.randn(300, 40, generator=generator)
    own = torch.randn(300, 80, generator=generator)
    matrix = torch.nn.functional.normalize(torch.cat([shared, shared], 1) + gap * own, dim=0)
    exact = exact_polar(matrix)
    ours = torch.dist(polar_factor(matrix).double(), exact)
    theirs = torch.dist(procrustes_svd(matrix).double(), exact)
    assert ours <= 1.1 * theirs


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (400, 150)])
def test_a_direction_that_is_missing_stays_missing_in_the_polar_factor(matrix_with, shape):
    matrix = matrix_with(*shape, [3.0, 2.0, 1.0])
    values = torch.linalg.svdvals(polar_factor(matrix).double())
    assert torch.allclose(values[:3], torch.ones(3, dtype=torch.float64), atol=1e-5)
    assert values[3:].max() < 1e-5


@pytest.mark.parametrize("orthogonalize", [polar_factor, newton_schulz])
@pytest.mark.parametrize("shape", [(6, 6), (300, 140), (140, 300)])
def test_zeros_stay_zeros(orthogonalize, shape):
    assert not orthogonalize(torch.zeros(shape)).any()


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 20), n=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_the_polar_factor_is_orthonormal_and_commutes_with_rotations(m, n, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(m, n, generator=generator) + 8 * torch.eye(m, n)
    rotation, _ = torch.linalg.qr(torch.randn(n, n, generator=generator))
    factor = polar_factor(matrix)
    short = factor.T @ factor if m >= n else factor @ factor.T
    assert torch.dist(short, torch.eye(min(m, n))) < 1e-4
    assert torch.dist(polar_factor(matrix @ rotation), factor @ rotation) < 1e-4


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_scale_does_not_matter(scale):
    matrix = torch.randn(60, 20, generator=torch.Generator().manual_seed(6))
    for orthogonalize in (polar_factor, newton_schulz):
        scaled = orthogonalize(scale * matrix)
        assert torch.dist(scaled, orthogonalize(matrix)) < 1e-5 * scaled.norm()


def test_a_batch_is_orthogonalised_as_its_members():
    batch = torch.randn(3, 60, 20, generator=torch.Generator().manual_seed(7))
    for orthogonalize in (polar_factor, newton_schulz, procrustes_svd):
        together = orthogonalize(batch)
        for matrix, result in zip(batch, together, strict=True):
            assert torch.dist(orthogonalize(matrix), result) < 1e-5 * result.norm()
