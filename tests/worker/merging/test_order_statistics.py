"""Ranks found by counting buckets are those that sorting finds."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.merging.method import Block, Subject
from worker.merging.reductions import Histogram, Sizes, Stream, magnitude_cuts, order_statistics

NUMBERS = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40]),
    min_size=1,
    max_size=40,
)


@dataclass(frozen=True)
class Signed(Stream):
    """Each expert's entries as they are."""

    def __call__(self, block):
        return list(block.tensors)


def reduced(reduction, tensors, stretch, block):
    """Return what a reduction finds: each stretch has its own state, and is read by blocks."""
    subject, total = Subject("w", tensors.shape[1:], (1.0,) * len(tensors)), None
    for part in tensors.split(stretch, dim=1):
        state = {}
        for piece in part.split(block, dim=1):
            reduction.add(state, Block(subject.weights, piece.contiguous()), subject)
        if total is None:
            total = state
        else:
            reduction.join(total, state)
    return reduction.finish(total, subject)


def driven(steps, tensors, stretch=1000, block=1000):
    """Return what a generator of reductions returns."""
    answer = None
    while True:
        try:
            answer = reduced(steps.send(answer), tensors, stretch, block)
        except StopIteration as end:
            return end.value


def ranked(stream, ranks):
    counted = yield Histogram(stream)
    return (yield from order_statistics(counted, ranks))


@pytest.mark.parametrize("stream", [Sizes(), Signed()], ids=["magnitudes", "signed numbers"])
@settings(deadline=None)
@given(numbers=NUMBERS, data=st.data())
def test_the_number_at_every_rank_is_found(stream, numbers, data):
    # A second expert shows that streams are told apart.
    tensors = torch.tensor([numbers, [number / 2 for number in reversed(numbers)]])
    ranks = data.draw(st.lists(st.integers(0, len(numbers) - 1), min_size=1, max_size=3))
    stretch, block = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12))
    found = driven(ranked(stream, ranks), tensors, stretch, block)
    expected = (tensors.abs() if stream.magnitudes else tensors).sort(descending=True).values
    assert found == expected[:, ranks].tolist()


@given(NUMBERS)
def test_a_histogram_counts_each_number_once_and_says_how_many_are_not_zero(numbers):
    class Counting(Sizes):
        counts_nonzero = True

    tensors = torch.tensor([numbers])
    counted = reduced(Histogram(Counting()), tensors, 7, 3)
    assert int(counted.counts[0].sum()) == len(numbers)
    assert counted.nonzero == int(tensors.count_nonzero())


def test_numbers_of_one_bucket_are_told_apart():
    generator = torch.Generator().manual_seed(1)
    values = torch.empty(1, 40_000).uniform_(0.01008, 0.01010, generator=generator)
    ordered = values[0].sort(descending=True).values
    ranks = [0, 7, 20_000, 39_999]
    assert driven(magnitude_cuts(ranks), values, 9_000, 5_000) == [ordered[ranks].tolist()]


def test_zeros_are_ranked_without_being_kept():
    values = torch.zeros(1, 1000)
    values[0, ::100] = torch.arange(-5.0, 5.0)
    assert driven(ranked(Sizes(), [0, 8, 9, 999]), values) == [[5.0, 1.0, 0.0, 0.0]]
    assert driven(ranked(Signed(), [0, 3, 4, 994, 995, 999]), values) == [
        [4.0, 1.0, 0.0, 0.0, -1.0, -5.0]
    ]
