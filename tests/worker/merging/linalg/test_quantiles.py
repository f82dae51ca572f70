"""Quantiles found in one reading are those that sorting finds, or it is said that they were not."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.merging.linalg.quantiles import Bracket, Tails

NUMBERS = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40]),
    min_size=1,
    max_size=60,
)


def in_blocks(found, values, block):
    for piece in values.split(block):
        if len(piece):
            found.add(piece)
    return found


@given(NUMBERS, st.data())
def test_the_ends_of_both_tails_are_those_of_the_sorted_sizes(numbers, data):
    values = torch.tensor(numbers)
    smallest = data.draw(st.integers(1, len(values)))
    largest = data.draw(st.integers(1, len(values)))
    block = data.draw(st.integers(1, 20))
    split = data.draw(st.integers(0, len(values)))
    tails = in_blocks(Tails(smallest, largest), values[:split], block)
    tails.join(in_blocks(Tails(smallest, largest), values[split:], block))
    ordered = values.abs().sort().values
    assert tails.quantiles == (float(ordered[smallest - 1]), float(ordered[-largest]))
    assert tails.greatest == float(ordered[-1])


def test_tails_are_cut_as_they_grow_and_lose_nothing():
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(60_000, np.float32))
    values = values[values.abs().sort(descending=False).indices]  # ever larger: the worst order
    tails = in_blocks(Tails(7, 11), values, 1000)
    ordered = values.abs().sort().values
    assert tails.quantiles == (float(ordered[6]), float(ordered[-11]))


def test_tails_within_one_bucket_are_told_apart():
    generator = np.random.default_rng(1)
    values = torch.from_numpy(generator.uniform(0.01008, 0.01010, 40_000).astype(np.float32))
    ordered = values.sort().values
    for block in (5_000, 40_000):
        tails = in_blocks(Tails(3, 5), values, block)
        assert tails.quantiles == (float(ordered[2]), float(ordered[-5]))


def test_tails_of_equal_numbers_keep_no_more_than_they_need():
    tails = Tails(7, 11)
    for _ in range(20):
        later = in_blocks(Tails(7, 11), torch.full((4_000,), 0.5), 1000)
        tails.join(later)
    assert tails._kept < 10_000
    assert tails.quantiles == (0.5, 0.5)


@given(NUMBERS, st.data())
def test_a_bracket_finds_the_number_at_its_rank_or_says_that_it_has_not(numbers, data):
    values = torch.tensor(numbers)
    low, high = sorted(data.draw(st.tuples(*[st.sampled_from(values.tolist())] * 2)))
    rank = data.draw(st.integers(0, len(values) - 1))
    block = data.draw(st.integers(1, 20))
    split = data.draw(st.integers(0, len(values)))
    bracket = in_blocks(Bracket(low, high, rank), values[:split], block)
    bracket.join(in_blocks(Bracket(low, high, rank), values[split:], block))
    expected = float(values.sort(descending=True).values[rank])
    assert bracket.value == (expected if low <= expected <= high else None)
    assert bracket.greatest == float(values.max())


@given(st.integers(0, 2**32), st.integers(1, 3000), st.data())
def test_what_a_sample_points_to_holds_the_number(seed, size, data):
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal(size, np.float32))
    rank = data.draw(st.integers(0, size - 1))
    bracket = Bracket.around(values[:: max(1, size // 1000)], rank, size)
    assert in_blocks(bracket, values, 500).value == float(values.sort(descending=True).values[rank])
