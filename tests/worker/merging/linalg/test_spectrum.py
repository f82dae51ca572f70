"""Spectra agree with a float64 SVD where float32 data determine them; floors, boosts and ranks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.merging.linalg.ops import apply, gram
from worker.merging.linalg.spectrum import (
    Rounding,
    boost,
    effective_rank,
    kept_energy,
    spectra_of,
    stable_rank,
)

SHAPES = [(1, 1), (7, 1), (24, 24), (40, 12), (200, 64), (700, 130)]


def spectrum_of(matrix):
    (found,) = spectra_of([gram(matrix)])
    return found


def randn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- Singular values and vectors --------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_those_of_float64(shape):
    matrix = randn(*shape)
    found, expected = spectrum_of(matrix), torch.linalg.svdvals(matrix.double())
    assert torch.allclose(found.everything, expected, rtol=0, atol=1e-9)
    assert found.largest == float(found.everything[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_give_orthonormal_vectors_and_the_matrix_back(shape):
    matrix, rank = randn(*shape, seed=2), shape[1]
    found = spectrum_of(matrix)
    factor, v = found.factors(rank)
    u = apply(matrix, factor)
    assert u.shape == shape
    assert v.dtype == u.dtype == torch.float32
    identity = torch.eye(rank)
    assert torch.dist(u.T @ u, identity) < 2e-6 * rank
    assert torch.dist(v.T @ v, identity) < 2e-6 * rank
    again = (u.double() * found.everything) @ v.double().T
    assert torch.dist(again, matrix.double()) < 2e-6 * matrix.norm()


@pytest.mark.parametrize("shape", [(300, 150), (200, 200)])
def test_small_singular_values_are_resolved_below_float32(matrix_with, shape):
    values = torch.logspace(0, -5, 100, dtype=torch.float64)
    matrix = matrix_with(*shape, values)
    exact = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = spectrum_of(matrix)
    # An error of 1e-16 in σ² is one of 1e-16 / (2 · 1e-5) in the smallest σ.
    assert torch.allclose(found.everything[:100], exact.S[:100], rtol=0, atol=1e-10)
    factor, v = found.factors(100)
    u = apply(matrix, factor)
    agreement = (u.double() * exact.U[:, :100]).sum(0) * (v.double() * exact.Vh[:100].T).sum(0)
    assert (1 - agreement).abs().max() < 1e-6


@pytest.mark.parametrize("last", [0.1, 1e-4])
def test_a_factor_is_float64_only_where_float32_would_be_seen(matrix_with, last):
    matrix = matrix_with(60, 20, torch.logspace(0, math.log10(last), 20))
    factor, _ = spectrum_of(matrix).factors(20)
    assert factor.dtype is (torch.float32 if last == 0.1 else torch.float64)


def test_a_factor_for_a_larger_matrix_is_as_exact_as_that_needs(matrix_with):
    small = spectrum_of(matrix_with(60, 20, [1.0, 0.5]))
    assert small.factors(2)[0].dtype is torch.float32
    assert small.factors(2, rms=4.0)[0].dtype is torch.float32
    assert small.factors(2, rms=1e4)[0].dtype is torch.float64


@pytest.mark.parametrize("shape", [(30, 20), (300, 140), (0, 9), (9, 0)])
def test_zeros_and_no_directions_are_no_special_case(shape):
    found = spectrum_of(torch.zeros(shape)).above(Rounding(2.0**-11, 0.0, shape), 1.0)
    assert not found.everything.any()
    assert found.largest == 0.0
    assert len(found.singular_values) == 0
    factor, v = found.factors(0)
    assert apply(torch.zeros(shape), factor).shape == (shape[0], 0)
    assert v.shape == (shape[1], 0)
    described = found.describe(3)
    assert described["kept_rank"] == 0
    assert described["noise_directions"] == shape[1]


# --- The noise floor --------------------------------------------------------------------------


def test_the_floor_is_the_larger_of_arithmetic_and_storage():
    rounding = Rounding(unit_roundoff=2**-11, base_rms=0.05, shape=(300, 100))
    assert rounding.floor(2.0, 0.0) == 2.0**-24 * 300 * 2.0
    assert rounding.floor(2.0, 2.0) == pytest.approx(2 * 2**-11 * 0.05 * (math.sqrt(300) + 10))


def test_a_floor_may_be_that_of_the_larger_data_a_matrix_was_computed_from(matrix_with):
    found, rounding = spectrum_of(matrix_with(60, 20, [1.0, 1e-3])), Rounding(0.0, 0.0, (60, 20))
    assert len(found.above(rounding, 1.0).singular_values) == 2
    assert found.above(rounding, 1.0, largest=1000.0).floor == 2.0**-24 * 60 * 1000
    assert len(found.above(rounding, 1.0, largest=1000.0).singular_values) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(200, 64), (128, 128)])
def test_a_low_rank_update_is_told_from_the_rounding_of_its_storage(dtype, shape):
    base = (0.05 * randn(*shape)).to(dtype)
    update = randn(shape[0], 8, seed=2) @ randn(8, shape[1], seed=3)
    scale = 8 * torch.finfo(dtype).eps * 0.05
    expert = (base.float() + scale * update).to(dtype)
    rms = float(base.float().square().mean().sqrt())
    rounding = Rounding(torch.finfo(dtype).eps / 2, rms, shape)
    found = spectrum_of(expert.float() - base.float()).above(rounding, 1.0)
    assert len(found.singular_values) == 8
    described = found.describe(4)
    assert described["noise_directions"] == min(shape) - 8
    assert described["kept_rank"] == 4
    assert described["noise_floor"] == found.floor


# --- Boosting, and ranks for the diagnostics --------------------------------------------------


def spectrum(*values):
    return torch.tensor(values, dtype=torch.float64)


descending = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30).map(
    lambda values: spectrum(*sorted(values, reverse=True))
)


def test_boosting_raises_to_the_value_at_which_the_energy_reaches_beta():
    values = spectrum(5.0, 3.0, 1.5, 0.5)
    boosted, threshold = boost(values, 0.6)  # 5/10, then 8/10
    assert boosted.tolist() == [5.0, 3.0, 3.0, 3.0]
    assert threshold == 3.0


def test_squared_energy_is_reached_earlier():
    values = spectrum(5.0, 3.0, 1.5, 0.5)
    boosted, threshold = boost(values, 0.6, "squared")  # 25/36.5
    assert boosted.tolist() == [5.0] * 4
    assert threshold == 5.0


@given(
    values=descending, beta=st.floats(0, 1), energy=st.sampled_from(["singular_values", "squared"])
)
def test_boosting_lowers_nothing_and_keeps_what_is_over_the_threshold(values, beta, energy):
    boosted, threshold = boost(values, beta, energy)
    assert (boosted >= values).all()
    assert boosted.min() == threshold
    assert torch.equal(boosted[values >= threshold], values[values >= threshold])
    assert stable_rank(boosted) >= stable_rank(values) - 1e-9


@given(values=descending, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_lower_beta_boosts_more(values, low, high):
    low, high = sorted((low, high))
    assert boost(values, low)[1] >= boost(values, high)[1]


@given(values=descending)
def test_beta_one_boosts_nothing_and_beta_zero_flattens(values):
    assert torch.equal(boost(values, 1.0)[0], values)
    assert boost(values, 0.0)[0].min() == values[0]


def test_an_empty_spectrum_has_no_rank_and_no_boost():
    empty = spectrum()
    assert boost(empty, 0.3)[1] == 0.0
    assert stable_rank(empty) == effective_rank(empty) == 0.0
    assert kept_energy(empty, 3) == 1.0


@pytest.mark.parametrize("size", [1, 4, 17])
def test_a_flat_spectrum_has_its_full_rank(size):
    flat = spectrum(*[0.7] * size)
    assert stable_rank(flat) == pytest.approx(size)
    assert effective_rank(flat) == pytest.approx(size)
    assert kept_energy(flat, 1) == pytest.approx(1 / size)
