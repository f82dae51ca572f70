"""Buckets hold what lies within their bounds, in the order of the numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.merging import native

NUMBERS = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40]),
    min_size=1,
    max_size=40,
)


@pytest.mark.parametrize("magnitudes", [True, False])
@given(numbers=NUMBERS)
def test_each_number_is_counted_in_the_bucket_whose_bounds_it_lies_in(magnitudes, numbers):
    values = torch.tensor(numbers)
    counts = np.zeros(native.BUCKETS[magnitudes], np.int64)
    native.count_buckets(values, counts, magnitudes=magnitudes)
    ranked = (values.abs() if magnitudes else values + 0.0).sort().values.tolist()
    for index in counts.nonzero()[0].tolist():
        low, high = native.bucket_bounds(index, magnitudes=magnitudes)
        inside, ranked = ranked[: counts[index]], ranked[counts[index] :]
        assert all(low <= number <= high for number in inside)
    assert not ranked


@pytest.mark.parametrize("magnitudes", [True, False])
def test_bounds_ascend_and_leave_no_gap(magnitudes):
    indices = range(native.BUCKETS[magnitudes])
    bounds = np.array([native.bucket_bounds(i, magnitudes=magnitudes) for i in indices], np.float32)
    lows, highs = bounds[np.isfinite(bounds).all(axis=1)].T
    assert (lows <= highs).all()
    assert lows[0] == (0.0 if magnitudes else -np.finfo(np.float32).max)
    assert highs[-1] == np.finfo(np.float32).max
    # Of the two zeros either may begin or end a bucket.
    ends = highs[:-1]
    following = np.where(ends == 0.0, 0.0, np.nextafter(ends, np.float32(np.inf)))
    assert (following == lows[1:]).all()


@given(NUMBERS, st.booleans(), st.integers(0, 39), st.integers(0, 39), st.integers(0, 1100))
def test_found_are_the_numbers_between_two_bounds_in_their_order(numbers, sizes, one, other, pad):
    values = torch.cat([torch.zeros(pad), torch.tensor(numbers), torch.zeros(pad)])
    ranked = values.abs() if sizes else values
    low, high = sorted(float(ranked[pad + i % len(numbers)]) for i in (one, other))
    expected = ranked[(ranked >= low) & (ranked <= high) & (ranked != 0)]
    assert torch.equal(native.find_between(values, low, high, magnitudes=sizes), expected)
