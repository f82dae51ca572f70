"""Blocks as they are read from files: exact in any dtype, and any fault names its input."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.merging import native
from worker.merging.native import (
    EQUAL,
    FINITE,
    RESULT_FINITE,
    Combination,
    LowRank,
    ReadError,
    Sources,
    combine_rows,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ENTRIES = 70_001  # several pieces, and a rest
PREFIX = 24


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[list[tuple[int, torch.Tensor]]]:
    """Four files of one tensor, each behind a few bytes, in dtypes of their own."""
    generator = torch.Generator().manual_seed(1)
    files = []
    for number, dtype in enumerate(DTYPES):
        tensor = torch.randn(ENTRIES, generator=generator).to(dtype)
        tensor[:9] = 0.25
        path = tmp_path / str(number)
        path.write_bytes(b"x" * PREFIX + tensor.view(torch.uint8).numpy().tobytes())
        files.append((os.open(path, os.O_RDONLY), tensor))
    yield files
    for descriptor, _ in files:
        os.close(descriptor)


def sources_of(files, *, subtract: bool) -> Sources:
    return Sources([(d, t.dtype, PREFIX) for d, t in files], subtract=subtract)


def test_every_dtype_is_widened_exactly_and_float64_rounded(opened):
    rows = torch.empty(4, ENTRIES - 5)
    found = sources_of(opened, subtract=False).read(5, rows)
    assert found == FINITE
    for row, (_, tensor) in zip(rows, opened, strict=True):
        assert torch.equal(row, tensor[5:].float())


def test_all_values_of_half_precision_are_widened_exactly(tmp_path):
    bits = np.arange(2**16, dtype=np.uint16)
    path = tmp_path / "halves"
    path.write_bytes(bits.tobytes())
    descriptor = os.open(path, os.O_RDONLY)
    for dtype in (torch.float16, torch.bfloat16):
        rows = torch.empty(1, 2**16)
        Sources([(descriptor, dtype, 0)], subtract=False).read(0, rows)
        wanted = torch.from_numpy(bits.view(np.int16)).view(dtype).float()
        assert torch.equal(rows[0].nan_to_num(7.0), wanted.nan_to_num(7.0))
    os.close(descriptor)


def test_the_first_is_subtracted_and_inner_products_are_those_of_the_differences(opened):
    rows, gram = torch.empty(4, ENTRIES), np.zeros((3, 3))
    sources_of(opened, subtract=True).read(0, rows, gram)
    wanted = torch.stack([t.float() - opened[0][1] for _, t in opened[1:]])
    assert torch.equal(rows[1:], wanted)
    exact = wanted.double() @ wanted.double().mT
    assert np.allclose(np.triu(gram), np.triu(exact.numpy()), rtol=1e-12)
    again = np.zeros((3, 3))
    assert sources_of(opened, subtract=True).add_inner_products(0, ENTRIES, again) & FINITE
    assert np.array_equal(gram, again)


@given(
    weights=st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3),
    scales=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=3, unique=True),
)
def test_what_is_combined_as_it_is_read_is_what_rows_in_memory_combine_to(weights, scales):
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(4, 20_000, generator=generator)
    rows[:, :7] = -0.0
    combination = Combination(weights, scales, subtracted=True)
    results = torch.empty(len(scales), 20_000)
    assert combine_rows(rows, 0, combination, results)
    change = sum(w * r for w, r in zip(torch.tensor(weights), rows[1:], strict=True))
    for result, scale in zip(results, torch.tensor(scales), strict=True):
        step = scale * change
        assert torch.equal(result, torch.where(step == 0, rows[0], rows[0] + step))
        assert torch.equal(result[:7].signbit(), rows[0, :7].signbit())


def test_files_combine_to_what_their_rows_do(opened):
    rows = torch.empty(4, ENTRIES)
    sources = sources_of(opened, subtract=True)
    sources.read(0, rows)
    combination = Combination([0.5, 1.0, -2.0], [0.0, 1.5], subtracted=True)
    from_rows, from_files = torch.empty(2, ENTRIES - 3), torch.empty(2, ENTRIES - 3)
    assert combine_rows(rows, 3, combination, from_rows)
    assert sources.combine(3, combination, from_files) == FINITE | RESULT_FINITE
    assert torch.equal(from_rows, from_files)
    assert torch.equal(from_rows[0], rows[0, 3:])


def test_entries_that_are_equal_everywhere_are_copied_where_that_is_asked(opened):
    sources, results = sources_of(opened, subtract=False), torch.empty(1, ENTRIES)
    weights = [0.3, 0.3, 0.3, 0.2]
    sources.combine(0, Combination(weights, subtracted=False, copy_equal=True), results)
    assert torch.equal(results[0, :9], torch.full((9,), 0.25))
    sources.combine(0, Combination(weights, subtracted=False), results)
    assert not torch.equal(results[0, :9], torch.full((9,), 0.25))


def test_the_base_and_the_sum_are_told_apart_and_the_sum_is_that_of_rows_in_memory(opened):
    sources, rows = sources_of(opened, subtract=True), torch.empty(4, ENTRIES)
    gram, expected = np.zeros((3, 3)), np.zeros((3, 3))
    sources.read(0, rows, expected)
    weights, results = [0.5, 1.0, -2.0], torch.empty(2, ENTRIES)
    combination = Combination(weights, subtracted=True, apart=True)
    assert sources.combine(0, combination, results, gram) == FINITE | RESULT_FINITE
    assert torch.equal(results[0], rows[0])
    expected_sum = torch.empty(ENTRIES)
    native.weighted_sum(rows[1:], weights, expected_sum)
    assert torch.equal(results[1], expected_sum)
    assert np.array_equal(gram, expected)
    from_rows = torch.empty(2, ENTRIES - 3)
    assert combine_rows(rows, 3, combination, from_rows)
    assert torch.equal(from_rows, results[:, 3:])
    with pytest.raises(ValueError, match="base"):
        Combination(weights, subtracted=False, apart=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 16_384, ENTRIES - 1])
def test_what_is_not_finite_is_seen_wherever_it_is(tmp_path, bad, place):
    tensor = torch.ones(ENTRIES)
    tensor[place] = bad
    path = tmp_path / "tensor"
    path.write_bytes(tensor.numpy().tobytes())
    descriptor = os.open(path, os.O_RDONLY)
    twice = Sources([(descriptor, torch.float32, 0)] * 2, subtract=False)
    assert twice.read(0, torch.empty(2, ENTRIES)) == EQUAL
    results = torch.empty(1, ENTRIES)
    assert not twice.combine(0, Combination([1.0, 1.0], subtracted=False), results) & FINITE
    os.close(descriptor)


def test_a_result_that_is_not_finite_is_told_from_its_inputs(opened):
    combination = Combination([3e38] * 4, subtracted=False)
    found = sources_of(opened, subtract=False).combine(0, combination, torch.empty(1, ENTRIES))
    assert found & FINITE
    assert not found & RESULT_FINITE


def test_a_file_that_ends_early_and_one_that_cannot_be_read_are_named(opened, tmp_path):
    (tmp_path / "2").write_bytes(b"short")
    rows = torch.empty(4, ENTRIES)
    with pytest.raises(ReadError) as caught:
        sources_of(opened, subtract=False).read(0, rows)
    assert (caught.value.number, caught.value.code) == (2, 0)
    files = [*opened[:1], (10_000, opened[1][1])]
    with pytest.raises(ReadError) as caught:
        sources_of(files, subtract=False).read(0, torch.empty(2, ENTRIES))
    assert (caught.value.number, caught.value.code) == (1, errno.EBADF)


def test_rows_are_not_read_beyond_their_end():
    with pytest.raises(IndexError):
        combine_rows(torch.zeros(2, 8), 5, Combination([1.0], subtracted=True), torch.empty(1, 4))


def test_what_does_not_fit_together_is_refused(opened):
    sources = sources_of(opened, subtract=True)
    combination = Combination([1.0, 1.0], subtracted=True)
    with pytest.raises(ValueError, match="3 inputs to 1 results"):
        sources.combine(0, combination, torch.empty(1, 8))
    with pytest.raises(ValueError, match="3 inputs to 1 results"):
        combine_rows(torch.zeros(4, 8), 0, combination, torch.empty(1, 8))
    with pytest.raises(ValueError, match="3 rows"):
        sources.add_inner_products(0, 8, np.zeros((4, 4)))
    with pytest.raises(ValueError, match="4 inputs"):
        sources.read(0, torch.empty(3, 8))


@pytest.mark.parametrize("other", range(4))
def test_entries_that_are_added_are_read_as_any(opened, other):
    (descriptor, tensor), (file, added) = opened[0], opened[other]
    rows, places = torch.empty(1, 20_000), [(descriptor, tensor.dtype, PREFIX)]
    sources = Sources(places, subtract=False, added={0: (file, added.dtype, PREFIX)})
    sources.read(999, rows)
    part = slice(999, 20_999)
    assert torch.equal(rows[0], tensor[part].float() + added[part].float())
    # The first input is subtracted from the sum.
    twice = Sources(places * 2, subtract=True, added={1: (file, added.dtype, PREFIX)})
    both = torch.empty(2, 20_000)
    twice.read(999, both)
    assert torch.equal(both[1], rows[0] - tensor[part].float())
    beyond = Sources(places, subtract=False, added={0: (file, added.dtype, 2**40)})
    with pytest.raises(ReadError):
        beyond.read(0, rows)


def test_a_product_that_is_added_is_the_same_wherever_a_read_begins(opened):
    descriptor, tensor = opened[0]
    rows, columns, first = 6, 700, 3
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn(rows, 5, generator=generator), torch.randn(5, columns)
    factors = torch.rand(rows, generator=generator)
    change = LowRank(left, right, 0.5, first_row=first, factors=factors)
    sources = Sources([(descriptor, tensor.dtype, PREFIX)], subtract=False, changes={0: change})
    start, stop = first * columns, (first + rows) * columns
    whole = torch.empty(1, stop - start)
    sources.read(start, whole)
    stored = tensor[start:stop].view(rows, columns).double()
    expected = factors[:, None] * (stored + 0.5 * left.double() @ right.double())
    assert torch.allclose(whole.view(rows, columns).double(), expected, atol=1e-5)
    part = torch.empty(1, 1500)
    sources.read(start + 999, part)
    assert torch.equal(part[0], whole[0, 999:2499])
    for outside in (start - 1, stop - 1499):
        with pytest.raises(IndexError):
            sources.read(outside, part)
