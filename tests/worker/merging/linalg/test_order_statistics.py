"""Ranks found by counting bits are those that sorting finds, and masks drawn by position stay."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.merging.linalg.draws import bernoulli
from worker.merging.linalg.order_statistics import (
    Candidates,
    Histogram,
    keep_largest,
)

NUMBERS = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40]),
    min_size=1,
    max_size=40,
)


def boundaries(values, ranks, *, signed, block):
    histogram = Histogram(1, signed=signed)
    for piece in values.split(block):
        histogram.add(0, piece)
    candidates = Candidates([histogram.find(0, ranks)], signed)
    for number, piece in enumerate(values.split(block)):
        candidates.add(0, piece, number * block)
    return candidates.boundaries(0)


@given(NUMBERS, st.data())
def test_the_number_at_every_rank_of_magnitudes_is_found(numbers, data):
    values = torch.tensor(numbers)
    ranks = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3))
    block = data.draw(st.integers(1, 12))
    found = boundaries(values, ranks, signed=False, block=block)
    expected = values.abs().sort(descending=True).values
    assert [boundary.value for boundary in found] == [float(expected[rank]) for rank in ranks]


@given(NUMBERS, st.data())
def test_the_number_at_every_rank_of_signed_numbers_is_found(numbers, data):
    values = torch.tensor(numbers) + 0.0
    ranks = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3))
    found = boundaries(values, ranks, signed=True, block=7)
    expected = values.sort(descending=True).values
    assert [boundary.value for boundary in found] == [float(expected[rank]) for rank in ranks]


@given(NUMBERS, st.data())
def test_exactly_the_largest_are_kept_and_of_equal_ones_the_first(numbers, data):
    values = torch.tensor(numbers)
    count = data.draw(st.integers(1, len(values)))
    (boundary,) = boundaries(values, [count - 1], signed=False, block=5)
    order = np.argsort(-values.abs().numpy(), kind="stable")[:count]
    expected = torch.zeros_like(values)
    expected[order] = values[order]
    assert torch.equal(keep_largest(values, boundary, 0), expected)
    blocks = [keep_largest(v, boundary, 3 * k) for k, v in enumerate(values.split(3))]
    assert torch.equal(torch.cat(blocks), expected)


def test_the_largest_is_bounded_by_its_bucket():
    histogram = Histogram(1, signed=False)
    assert histogram.entries == 0
    histogram.add(0, torch.tensor([0.5, -3.0]))
    assert 3.0 <= histogram.largest(0) < 3.1
    histogram.add(0, torch.tensor([3.4e38]))
    assert 3.4e38 <= histogram.largest(0) <= math.inf


def test_masks_do_not_depend_on_where_blocks_begin():
    whole = bernoulli(7, 0, 1001, 0.3)
    for edges in ([0, 1, 4, 500, 1001], [0, 333, 1000, 1001]):
        pairs = itertools.pairwise(edges)
        pieces = [bernoulli(7, start, stop - start, 0.3) for start, stop in pairs]
        assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.9])
def test_masks_have_their_probability(probability):
    mask = bernoulli(3, 0, 200_000, probability)
    assert float(mask.float().mean()) == pytest.approx(probability, abs=0.005)
    assert bernoulli(3, 5, 9, 1.0).all()
