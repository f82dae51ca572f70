"""Directions side by side, made orthonormal and summed up, are those of whole float64 matrices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.merging.linalg.directions import Directions, Part, kept_rank
from worker.merging.linalg.ops import gram, mirror
from worker.merging.linalg.spectrum import spectra_of

SHAPE, RANKS = (50, 12), [4, 0, 3]


@pytest.fixture
def experts():
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def directions(experts):
    spectra = spectra_of([gram(expert) for expert in experts])
    pairs = enumerate(zip(spectra, RANKS, strict=True))
    return Directions(SHAPE, tuple(Part.of(k, spectrum, rank) for k, (spectrum, rank) in pairs))


def sides(directions, experts):
    """Û and V̂, float64, and ÛᵀÛ."""
    left = directions.left(experts, None)
    return left.double(), directions.right.double(), mirror(gram(left))


def test_sides_are_the_leading_singular_vectors_one_expert_after_the_other(directions, experts):
    left, right, _ = sides(directions, experts)
    assert directions.ranks == RANKS
    assert not directions.needs_sum
    start = 0
    for expert, rank in zip(experts, RANKS, strict=True):
        u, values, vh = torch.linalg.svd(expert.double(), full_matrices=False)
        ours = left[:, start : start + rank], right[:, start : start + rank]
        rebuilt = ours[0] * values[:rank] @ ours[1].T
        assert torch.dist(rebuilt, u[:, :rank] * values[:rank] @ vh[:rank]) < 1e-4
        start += rank


def test_blocks_of_rows_are_the_rows_of_the_whole(directions, experts):
    whole = directions.left(experts, None)
    blocks = [directions.left(experts[:, i : i + 7], None) for i in range(0, 50, 7)]
    torch.testing.assert_close(torch.cat(blocks), whole, rtol=1e-6, atol=1e-7)


def test_a_part_may_be_of_the_sum_or_corrected_by_it(experts):
    total = experts.sum(0)
    (spectrum,) = spectra_of([gram(total)])
    factor, right = spectrum.factors(2)
    correction = torch.randn(12, 2, generator=torch.Generator().manual_seed(2))
    of_sum, corrected = Part(None, factor, right), Part(1, factor, right, correction)
    directions = Directions(SHAPE, (of_sum, corrected))
    assert directions.needs_sum
    left = directions.left(experts, total)
    expected = [total @ factor, experts[1] @ factor + total @ correction]
    torch.testing.assert_close(left, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-4)


def test_the_orthogonal_sum_is_that_of_the_polar_factors_of_both_sides(directions, experts):
    left, right, products = sides(directions, experts)
    strengths = torch.linspace(2, 1, 7, dtype=torch.float64)
    (u, _, vh), (x, _, yh) = (torch.linalg.svd(side, full_matrices=False) for side in (left, right))
    expected = (u @ vh * strengths) @ (x @ yh).T
    found = left @ directions.orthogonal_sum(products, strengths, "polar").double()
    assert torch.dist(found, expected) < 1e-5 * expected.norm()
    # A second answer, by what was kept of the first one.
    twice = left @ directions.orthogonal_sum(products, 2 * strengths, "polar").double()
    assert torch.dist(twice, 2 * expected) < 1e-5 * twice.norm()


def test_interference_is_that_of_its_formulas(directions, experts):
    left, right, products = sides(directions, experts)
    strengths = torch.linspace(2, 1, 7, dtype=torch.float64)
    found, identity = directions.interference(products, strengths), torch.eye(7)
    crosstalk = (left.T @ left - identity) @ strengths.diag() @ (right.T @ right - identity)
    expected = {
        "left_overlap": float((left[:, :4].T @ left[:, 4:]).square().sum() / 3),
        "right_overlap": float((right[:, :4].T @ right[:, 4:]).square().sum() / 3),
        "singular_task_interference": float(crosstalk.abs().sum()),
    }
    assert found == pytest.approx(expected, rel=1e-5)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 100))
def test_a_hundredth_of_the_rank_is_counted_in_decimals(m, n, hundredths):
    expected = max(1, min(m, n) * hundredths // 100)
    assert kept_rank((m, n), 3, hundredths / 100) == expected
    assert kept_rank((m, n), 3, None) == max(1, min(m, n) // 3)
