from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from app.contract.evaluation import UtteranceResult
from app.reports.confidence import (
    REPLICATES,
    Sampling,
    describe,
    interval,
    probability_of_improvement,
    rates,
    resample,
    sampling,
)

COLUMN = st.lists(st.integers(0, 9), min_size=2, max_size=30)


def alone(count: int, name: str = "set") -> Sampling:
    """Each utterance is a unit."""
    return Sampling(name, "utterance", np.arange(count), count)


def column(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def utterances(*labels: tuple[str | None, str | None]) -> list[UtteranceResult]:
    return [
        UtteranceResult(
            index=index, audio="a", reference="x", hypothesis="x", audio_seconds=1.0,
            decode_seconds=1.0, speaker=speaker, session=session,
        )
        for index, (speaker, session) in enumerate(labels)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "unit", "members"),
    [
        ([("ana", "1"), ("rui", "1"), ("ana", "2")], "speaker", [0, 1, 0]),
        ([("ana", "1"), (None, "1"), ("rui", "2")], "session", [0, 0, 1]),
        ([("ana", "1"), ("ana", "1"), ("ana", "2")], "session", [0, 0, 1]),
        ([("ana", None), ("ana", "1"), ("ana", "2")], "utterance", [0, 1, 2]),
        ([(None, None), (None, None)], "utterance", [0, 1]),
        ([], "utterance", []),
    ],
)
def test_speakers_go_before_sessions_before_utterances(labels, unit, members) -> None:
    found = sampling("set", utterances(*labels))
    assert (found.unit, found.members.tolist()) == (unit, members)
    assert found.units == len(set(members))


def test_the_interval_is_scipys() -> None:
    draw = np.random.default_rng(5)
    lengths = draw.integers(1, 25, 200)
    errors = draw.binomial(lengths, 0.2)
    found = interval(rates(alone(200), errors, lengths))
    expected = scipy.stats.bootstrap(
        (errors, lengths),
        lambda e, n, axis: e.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=1,
    ).confidence_interval
    assert found["low"] == pytest.approx(expected.low, abs=2e-3)
    assert found["high"] == pytest.approx(expected.high, abs=2e-3)


def test_replicates_follow_the_exact_distribution() -> None:
    errors, lengths = column(0, 2, 5), column(4, 3, 9)
    exact = [
        errors[list(drawn)].sum() / lengths[list(drawn)].sum()
        for drawn in product(range(3), repeat=3)
    ]
    found = rates(alone(3), errors, lengths)
    assert set(found.round(12)) == set(np.round(exact, 12))
    for rate in set(exact):
        share = np.mean(np.isclose(exact, rate))
        spread = np.sqrt(share * (1 - share) / REPLICATES)
        assert np.mean(np.isclose(found, rate)) == pytest.approx(share, abs=4 * spread)


def test_a_speaker_is_drawn_with_all_that_was_said() -> None:
    grouped = Sampling("set", "speaker", column(0, 1, 0, 1, 0), 2)
    sums = resample(grouped, np.stack([column(1, 10, 1, 10, 1)], axis=1))[:, 0]
    assert set(sums.tolist()) == {6, 23, 40}
    by_speaker = interval(rates(grouped, column(0, 3, 0, 3, 0), column(3, 3, 3, 3, 3)))
    by_utterance = interval(rates(alone(5), column(0, 3, 0, 3, 0), column(3, 3, 3, 3, 3)))
    assert by_speaker == {"low": 0.0, "high": 1.0}
    assert by_utterance["low"] >= 0.0
    assert by_utterance["high"] <= 1.0


@given(COLUMN)
def test_the_seed_and_the_name_decide_the_draws(errors: list[int]) -> None:
    lengths = column(*[9] * len(errors))
    first, again = (rates(alone(len(errors)), column(*errors), lengths) for _ in range(2))
    assert np.array_equal(first, again)
    low, high = interval(first)["low"], interval(first)["high"]
    assert min(errors) / 9 <= low <= high <= max(errors) / 9
    assert not np.array_equal(
        resample(alone(30, "a"), np.arange(30)[:, None]),
        resample(alone(30, "b"), np.arange(30)[:, None]),
    )


def test_a_large_set_is_drawn_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(40)[:, None]
    whole = resample(alone(40), values)
    monkeypatch.setattr("app.reports.confidence._DRAWS", 40 * 7)
    assert np.array_equal(resample(alone(40), values), whole)


def test_without_units_or_words_there_is_no_interval() -> None:
    assert rates(alone(1), column(1), column(2)) is None
    assert rates(alone(2), column(1, 1), column(0, 0)) is None
    assert rates(alone(0), column(), column()) is None
    assert describe(None, "utterance", 1) is None
    sparse = rates(alone(2), column(1, 1), column(0, 2))
    assert np.isnan(sparse).any()
    assert interval(sparse) is None


def test_the_interval_says_how_it_was_made() -> None:
    record = describe(np.full(REPLICATES, 0.25), "speaker", 12)
    assert record == {
        "low": 0.25, "high": 0.25, "method": "bootstrap", "replicates": 1000,
        "unit": "speaker", "units": 12, "seed": 0,
    }  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=20))
def test_improvements_of_a_pair_add_up_to_one(pairs: list[tuple[int, int]]) -> None:
    sums = resample(alone(len(pairs)), np.array(pairs, dtype=np.int64))
    here, there = sums[:, 0], sums[:, 1]
    forward = probability_of_improvement(here, there)
    assert forward + probability_of_improvement(there, here) == pytest.approx(1)
    assert probability_of_improvement(here, here) == 0.5
    assert probability_of_improvement(here, here + 1) == 1.0


def test_the_probability_of_improvement_is_the_exact_one() -> None:
    pairs = np.array([[0, 1], [3, 1], [1, 2], [0, 2]])
    differences = [
        (pairs[list(drawn), 0] - pairs[list(drawn), 1]).sum()
        for drawn in product(range(4), repeat=4)
    ]
    exact = np.mean([(d < 0) + 0.5 * (d == 0) for d in differences])
    sums = resample(alone(4), pairs)
    found = probability_of_improvement(sums[:, 0], sums[:, 1])
    assert found == pytest.approx(exact, abs=4 * np.sqrt(0.25 / REPLICATES))


def test_an_interval_of_which_most_is_undefined_is_not_given():
    replicates = np.full(REPLICATES, 0.25)
    assert interval(replicates) == {"low": 0.25, "high": 0.25}
    replicates[: REPLICATES // 10] = np.nan
    assert interval(replicates) is None
    assert describe(replicates, "utterance") is None
