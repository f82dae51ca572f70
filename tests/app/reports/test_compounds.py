"""Compounds cost nothing, as on the Open ASR Leaderboard; other errors are unchanged."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kaldialign import edit_distance

from app.reports.alignments import count_errors
from app.reports.compounds import align_compounds
from app.reports.scored import score_dataset

WORDS = st.lists(
    st.sampled_from(["a", "b", "ab", "ba", "aab", "white", "paper", "whitepaper", "x"]), max_size=14
)


@settings(max_examples=100)
@given(WORDS, WORDS)
@example(["white", "paper"], ["whitepaper"])
@example(["whitepaper"], ["white", "paper"])
@example(["a", "b", "x"], ["ab", "ab", "x"])
def test_errors_are_the_leaderboards(reference: list[str], hypothesis: list[str]) -> None:
    alignment = align_compounds(reference, hypothesis)
    counts = count_errors(alignment)
    expected = edit_distance(reference, hypothesis, merge_compounds=True)
    assert counts.errors == expected["total"]
    assert counts.reference_units == len(reference)
    # It covers both sides without a gap, and what it calls equal reads alike.
    ends = [(0, 0), *((one.ref_end_idx, one.hyp_end_idx) for one in alignment)]
    for (ref, hyp), (ref_end, hyp_end), chunk in zip(ends, ends[1:], alignment, strict=False):
        assert (chunk.ref_start_idx, chunk.hyp_start_idx) == (ref, hyp)
        if chunk.type == "equal":
            assert "".join(reference[ref:ref_end]) == "".join(hypothesis[hyp:hyp_end])
    assert ends[-1] == (len(reference), len(hypothesis))
    assert all(before <= after for before, after in pairwise(ends))


def test_a_long_session_has_its_compounds_joined_too() -> None:
    said = [f"w{number % 97}" for number in range(3000)]
    for place in range(0, 3000, 50):
        said[place] = "someone"
    heard = [part for word in said for part in (["some", "one"] if word == "someone" else [word])]
    heard[1000:1003] = ["wrong", "words"]
    expected = edit_distance(said, heard, merge_compounds=True)["total"]
    assert count_errors(align_compounds(said, heard)).errors == expected


@pytest.mark.parametrize(
    ("reference", "hypothesis"),
    [
        (["x" * 5000], ["x"] * 5000),
        (["x"] * 10_000, ["xx"] * 5000),
        (["a", "b"] * 5000, ["ab"] * 5000),
    ],
)
def test_hostile_texts_take_no_longer(reference: list[str], hypothesis: list[str]) -> None:
    started = time.perf_counter()
    align_compounds(reference, hypothesis)
    assert time.perf_counter() - started < 5


def test_only_open_asr_joins_compounds(make_dataset) -> None:
    pairs = ("a white paper for some one", "a whitepaper for someone")
    dataset = make_dataset("set", pairs, language="en")
    joined, apart = (score_dataset(dataset, name).scores[0].words for name in ("open_asr", "basic"))
    assert (joined.errors, joined.reference_units, joined.hits) == (0, 6, 6)
    assert apart.errors == 4
