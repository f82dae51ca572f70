"""Spectra: the noise floor, boosting, and the ranks that diagnostics report."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.merging.linalg.spectra import (
    boost,
    effective_rank,
    kept_energy,
    noise_floor,
    stable_rank,
)
from worker.merging.linalg.sums import weighted_sum
from worker.merging.linalg.task_spectra import task_spectra


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


def test_the_floor_is_the_larger_of_arithmetic_and_storage():
    arithmetic = noise_floor(2.0, (300, 100), unit_roundoff=2**-11, base_rms=0.05, factor=0.0)
    assert arithmetic == 2.0**-24 * 300 * 2.0
    stored = noise_floor(2.0, (300, 100), unit_roundoff=2**-11, base_rms=0.05, factor=2.0)
    assert stored == pytest.approx(2 * 2**-11 * 0.05 * (math.sqrt(300) + 10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(200, 64), (64, 200), (128, 128)])
def test_a_low_rank_update_is_told_from_the_rounding_of_its_storage(dtype, shape):
    generator = torch.Generator().manual_seed(1)
    base = (0.05 * torch.randn(shape, generator=generator)).to(dtype)
    update = torch.randn(shape[0], 8, generator=generator) @ torch.randn(
        8, shape[1], generator=generator
    )
    scale = 8 * torch.finfo(dtype).eps * 0.05
    expert = (base.float() + scale * update).to(dtype)
    task_vector = expert.float() - base.float()
    (found,) = task_spectra(
        task_vector[None],
        base.float(),
        unit_roundoff=torch.finfo(dtype).eps / 2,
        factor=1.0,
    )
    assert len(found.singular_values) == 8
    assert found.noise_directions == min(shape) - 8
    assert found.describe(4)["kept_rank"] == 4


def test_blocks_are_summed_to_the_bit_as_the_whole():
    tensors = torch.randn(5, 37, 11, generator=torch.Generator().manual_seed(2))
    weights = (1.0, -0.3, 0.25, 2.0, 1e-3)
    whole = weighted_sum(tensors, weights, normalize=True)
    rows = [weighted_sum(tensors[:, i : i + 5], weights, normalize=True) for i in range(0, 37, 5)]
    flat = tensors.flatten(1)
    pieces = [weighted_sum(flat[:, i : i + 7], weights, normalize=True) for i in range(0, 407, 7)]
    assert torch.equal(whole, torch.cat(rows))
    assert torch.equal(whole.flatten(), torch.cat(pieces))
