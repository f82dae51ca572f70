from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from app.routes.ranges import UnsatisfiableRange, requested_ranges

TAG = '"x"'


def ranges(given: str, size: int):
    return requested_ranges("GET", Headers({"Range": given}), TAG, size)


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 1000))
def test_a_range_is_what_a_slice_is(first: int, length: int, size: int):
    content = bytes(size)
    found = ranges(f"bytes={first}-{first + length}", size)
    wanted = content[first : first + length + 1]
    if not wanted:
        assert isinstance(found, UnsatisfiableRange)
    else:
        assert found == [(first, first + len(wanted))]


@given(st.integers(0, 2000), st.integers(0, 1000))
def test_a_suffix_is_the_end(length: int, size: int):
    found = ranges(f"bytes=-{length}", size)
    wanted = min(length, size)
    expected = [(size - wanted, size)] if wanted else UnsatisfiableRange(size)
    assert found == expected


@given(st.text("bytes=0123456789-, x", max_size=30), st.integers(0, 50))
def test_any_header_is_ignored_refused_or_within_the_bytes(given: str, size: int):
    found = ranges("bytes=" + given, size)
    if isinstance(found, list):
        assert all(0 <= start < stop <= size for start, stop in found)
        assert sum(stop - start for start, stop in found) <= size


def test_ranges_that_overlap_never_send_more_than_there_is():
    assert ranges("bytes=0-,0-,0-", 10) is None
    assert ranges("bytes=0-4,5-9", 10) == [(0, 5), (5, 10)]


def test_other_methods_know_no_ranges():
    headers = Headers({"Range": "bytes=0-1"})
    assert requested_ranges("HEAD", headers, TAG, 10) is None
