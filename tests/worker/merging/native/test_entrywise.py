"""Trimmed sums, spreads and energies are those of plain torch, entry by entry."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.merging import native

EXPERTS = 3
FLOATS = st.floats(-4, 4, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0])
WEIGHTS = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), min_size=EXPERTS, max_size=EXPERTS)
CUTS = st.lists(
    st.sampled_from([0.0, 0.5, 1.0, 2.0, float("inf")]), min_size=EXPERTS, max_size=EXPERTS
)


@st.composite
def blocks(draw):
    """Draw rows of a few numbers, or of the same numbers over and over, more than a chunk."""
    numbers = draw(st.lists(FLOATS, min_size=EXPERTS, max_size=12 * EXPERTS))
    width = len(numbers) // EXPERTS
    some = torch.tensor(numbers[: width * EXPERTS]).view(EXPERTS, width)
    return some.repeat(1, 1 + draw(st.sampled_from([0, 1100 // width]))).contiguous()


def trimmed(rows, lows, highs):
    sizes = rows.abs()
    kept = (sizes >= torch.tensor(lows)[:, None]) & (sizes <= torch.tensor(highs)[:, None])
    return torch.where(kept, rows, 0.0), int(kept.sum())


def total(rows):
    """Add rows in their order, from 0 on."""
    return sum(rows, torch.zeros(rows.shape[1]))


@given(blocks(), WEIGHTS, CUTS, st.booleans(), st.booleans())
def test_elected_sums_keep_what_is_at_the_cut_and_agrees(rows, weights, cuts, votes, normalize):
    kept, count = trimmed(rows, cuts, [float("inf")] * EXPERTS)
    w = torch.tensor(weights)[:, None]
    values = kept * w
    positive = total(values if votes else kept) >= 0
    agrees = torch.where(positive, values > 0, values < 0)
    expected = total(torch.where(agrees, values, 0.0))
    if normalize:
        divisor = total(torch.where(agrees, w, 0.0))
        expected = torch.where(divisor != 0, expected / divisor, 0.0)
    result = torch.empty(rows.shape[1])
    found = native.elected_sum(
        rows, weights, cuts, result, weighted_votes=votes, normalize=normalize
    )
    assert found == (int(agrees.sum()), count)
    assert torch.equal(result, expected)


@given(blocks(), WEIGHTS, CUTS, CUTS)
def test_banded_sums_keep_both_ends_of_a_band(rows, weights, lows, highs):
    kept, count = trimmed(rows, lows, highs)
    result = torch.empty(rows.shape[1])
    bands = list(zip(lows, highs, strict=True))
    assert native.banded_sum(rows, weights, bands, result) == count
    assert torch.equal(result, total(kept * torch.tensor(weights)[:, None]))


@given(blocks())
def test_spread_is_the_standard_deviation_and_0_where_all_are_equal(rows):
    result = torch.empty(rows.shape[1])
    native.spread(rows, result)
    expected = rows.double().std(dim=0, correction=0).float()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-12)
    assert not result[(rows == rows[0]).all(dim=0)].any()


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e37])
def test_spread_neither_overflows_nor_vanishes(scale):
    rows, result = torch.tensor([[1.0, 2.0], [3.0, 2.0]]) * scale, torch.empty(2)
    native.spread(rows, result)
    torch.testing.assert_close(result, torch.tensor([scale, 0.0]), rtol=1e-6, atol=0)


@given(blocks(), st.sampled_from([0.0, 0.5, 1.0, 5.0]))
def test_selection_by_rank_keeps_what_is_at_the_cut(rows, cut):
    ranked, energies = rows[0].abs(), torch.ones(EXPERTS, dtype=torch.float64)
    native.add_energies(rows, ranked, cut, energies)
    expected = 1 + torch.where(ranked >= cut, rows.double(), 0.0).square().sum(dim=1)
    torch.testing.assert_close(energies, expected)
    values = rows[1].clone()
    native.clear_below(values, ranked, cut)
    assert torch.equal(values, torch.where(ranked >= cut, rows[1], 0.0))


def test_inner_products_of_any_number_of_rows_are_exact():
    generator = torch.Generator().manual_seed(0)
    for count in range(1, 10):
        rows, gram = torch.randn(count, 1061, generator=generator), np.zeros((count, count))
        native.add_inner_products(rows, gram)
        expected = (rows.double() @ rows.double().T).numpy()
        assert np.allclose(gram, np.triu(expected), rtol=0, atol=1e-11)


def test_weighted_sums_add_the_experts_in_their_order():
    rows, result = torch.randn(4, 2100), torch.empty(2100)
    native.weighted_sum(rows, [0.5, -1.0, 2.0, 0.1], result)
    expected = 0.5 * rows[0] - rows[1] + 2.0 * rows[2] + 0.1 * rows[3]
    assert torch.equal(result, expected)


def test_a_base_to_which_nothing_is_added_keeps_its_zeros():
    base = torch.tensor([-0.0, 0.0, 1.0, -2.0])
    results = torch.empty(2, 4)
    assert native.add_scaled(base, [0.0, 2.0], torch.tensor([1.0, 0.0, 0.0, 1.0]), results)
    assert torch.equal(results, torch.tensor([[0.0, 0.0, 1.0, -2.0], [2.0, 0.0, 1.0, 0.0]]))
    assert results[0].signbit().tolist() == base.signbit().tolist()
    assert not native.add_scaled(base, [3e38, 1.0], torch.full((4,), 9.0), results)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_entry_that_is_not_finite_is_seen_wherever_it_is(bad):
    values = torch.zeros(3000)
    assert native.all_finite(values)
    for place in (0, 1500, 2999):
        values[place] = bad
        assert not native.all_finite(values)
        values[place] = 0.0
