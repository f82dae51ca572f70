"""Racing: what stops a trial, and what never does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from app.contract.measures import Measure
from app.contract.spaces import Study, check_study
from app.contract.studies import RUNGS, parse_study
from worker.studies.racing import (
    Scores,
    compared,
    expected,
    front,
    judge,
    order,
    pooled_units,
    share,
)

SETS = ("calls", "debates")
WORDS = 10


def study(*constraints: dict[str, Any], racing: bool = True) -> Study:
    sets = [{"name": n, "uri": f"file:///{n}.jsonl", "group": "in_domain"} for n in SETS]
    sets.append({"name": "news", "uri": "file:///news.jsonl", "group": "english"})
    return check_study(
        parse_study(
            {
                "base": "file:///base",
                "checkpoints": ["file:///one", "file:///two"],
                "candidates": [{"method": "soup"}],
                "search": {"racing": racing},
                "development": {"datasets": sets},
                "constraints": constraints,
            }
        )
    )


def scores(**errors: list[int]) -> Scores:
    found = Scores()
    for name, wrong in errors.items():
        found.errors[name] = dict(enumerate(wrong))
        found.lengths[name] = dict.fromkeys(range(len(wrong)), WORDS)
    return found


def even(errors: int, utterances: int = 40) -> Scores:
    """A system with the same errors in every utterance of every set."""
    return scores(**{name: [errors] * utterances for name in (*SETS, "news")})


def noisy(mean: float, seed: int, utterances: int = 40) -> Scores:
    rng = np.random.default_rng(seed)
    return scores(**{name: rng.poisson(mean, utterances).tolist() for name in (*SETS, "news")})


BASE = {"base": even(5), "one": even(4), "two": even(4)}


@settings(max_examples=60)
@given(st.integers(0, 300), st.integers(0, 5))
def test_rungs_divide_a_set_into_shares_that_grow_and_never_overlap(count: int, seed: int):
    ordered = order(seed, "calls", range(count))
    parts = [share(ordered, RUNGS, rung) for rung in range(len(RUNGS))]
    assert sorted(index for part in parts for index in part) == list(range(count))
    done = 0
    for part, fraction in zip(parts, RUNGS, strict=True):
        done += len(part)
        assert done == math.ceil(count * fraction)


def test_the_order_depends_on_seed_and_set_alone():
    assert order(0, "calls", range(50)) == order(0, "calls", reversed(range(50)))
    assert order(0, "calls", range(50)) != order(1, "calls", range(50))
    assert order(0, "calls", range(50)) != order(0, "news", range(50))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=8, max_size=40))
def test_on_one_set_the_test_is_the_paired_z_test(pairs: list[tuple[int, int]]):
    mine, other = scores(calls=[a for a, _ in pairs]), scores(calls=[b for _, b in pairs])
    gaps = np.array([a - b for a, b in pairs])
    delta, p = compared(mine, other, Measure("calls", ("calls",), "micro"))
    assert delta == pytest.approx(gaps.sum() / (WORDS * len(gaps)))
    if (gaps != 0).sum() < 5 or gaps.std() == 0:
        assert p == 1.0
    else:
        z = gaps.mean() / (gaps.std(ddof=1) / math.sqrt(len(gaps)))
        assert p == pytest.approx(2 * stats.norm.sf(abs(z)))


def test_one_endless_repetition_does_not_hide_that_a_trial_is_worse():
    best, worse = noisy(1, 0, 20), noisy(3, 1, 20)
    worse.errors["calls"][0] = 200  # of ten words
    found = judge(study(), {0: best, 1: worse}, {}, BASE, 0.5)
    assert "worse than #0" in str(found[1].reason)


def test_repetitions_alone_stop_no_trial():
    best, looping = noisy(2, 0), noisy(1, 1)
    looping.errors["calls"] |= dict.fromkeys(range(4), 400)
    delta, p = compared(looping, best, study().measures[0])
    assert delta > 0
    assert p == 1.0


def test_words_in_silence_count_as_one_error():
    silent, talking = scores(calls=[0] * 20), scores(calls=[30, 2] * 10)
    for one in (silent, talking):
        one.lengths["calls"] |= dict.fromkeys(range(0, 20, 2), 0)
    assert compared(talking, silent, Measure("calls", ("calls",), "micro"))[1] < 0.05


def test_only_utterances_that_both_have_decoded_are_compared():
    whole, half = scores(calls=[1] * 20 + [9] * 20), scores(calls=[1] * 20)
    assert compared(half, whole, Measure("calls", ("calls",), "micro"))[0] == 0.0


def test_a_trial_that_is_significantly_worse_than_the_best_stops_and_names_it():
    found = judge(study(), {0: noisy(1, 0), 1: noisy(4, 1)}, {}, BASE, 0.5)
    assert found[0].reason is None
    assert "worse than #0 (p = " in str(found[1].reason)


def test_what_is_complete_competes_on_the_utterances_that_were_reached():
    best = noisy(1, 0, 80)
    found = judge(study(), {3: noisy(4, 1, 10)}, {0: best}, BASE, 1 / 8)
    assert "worse than #0" in str(found[3].reason)


def test_equal_trials_and_small_differences_go_on():
    found = judge(study(), {0: noisy(2, 0), 1: noisy(2, 0), 2: noisy(2.1, 3)}, {}, BASE, 0.5)
    assert [verdict.reason for verdict in found.values()] == [None] * 3


def test_without_racing_only_constraints_stop_a_trial():
    found = judge(study(racing=False), {0: noisy(1, 0), 1: noisy(4, 1)}, {}, BASE, 0.5)
    assert found[1].reason is None


def test_with_constraints_only_what_has_met_them_to_the_end_stops_others():
    limit = {"set": "news", "max_wer": 0.9}
    best, other = noisy(1, 0), noisy(4, 1)
    found = judge(study(limit), {0: best, 1: other}, {}, BASE, 0.5)
    assert found[0].feasible
    assert found[1].reason is None  # the best so far may miss the constraint yet
    found = judge(study(limit), {1: other}, {0: best}, BASE, 0.5)
    assert "worse than #0" in str(found[1].reason)


@settings(max_examples=40)
@given(st.integers(0, 400), st.integers(1, 40), st.floats(0.0, 1.0))
def test_a_trial_stops_for_a_constraint_only_if_no_continuation_could_meet_it(
    errors: int, decoded: int, limit: float
):
    trial = even(0, decoded)
    trial.errors["news"] = dict.fromkeys(range(decoded), 0) | {0: errors}
    constraint = {"set": "news", "max_wer": limit}
    (verdict,) = judge(study(constraint), {0: trial}, {}, BASE, 0.5).values()
    best_possible = errors / (40 * WORDS)  # not one more error in the rest
    assert (verdict.reason is not None) == (best_possible > limit + 1e-9)


def test_a_regression_is_measured_on_the_same_utterances():
    base = dict(BASE, base=scores(**{**{n: [5] * 40 for n in SETS}, "news": [0] * 20 + [9] * 20}))
    trial = even(1, 20)
    constraint = {"set": "news", "max_regression": 0.05}
    (verdict,) = judge(study(constraint), {0: trial}, {}, base, 0.5).values()
    assert verdict.violations == pytest.approx((0.05,))
    assert verdict.reason is None  # over the whole set, the base has 45 %


def test_what_a_sampler_learns_does_not_depend_on_how_easy_the_first_utterances_were():
    easy, hard = [1] * 10, [3] * 30
    base = {"base": scores(**dict.fromkeys((*SETS, "news"), easy + hard))}
    stopped = scores(**{name: [2] * 10 for name in (*SETS, "news")})  # twice the base's errors
    complete = scores(**{name: [2] * 40 for name in (*SETS, "news")})
    assert expected(study(), stopped, base) == pytest.approx((0.5,))
    assert expected(study(), complete, base) == (0.2,)  # as it was measured


def test_words_and_characters_are_never_pooled():
    pooled, apart = {"set": "full.micro", "max_wer": 0.5}, {"set": "full", "max_wer": 0.5}
    one = even(1)
    one.metrics = {"calls": "wer", "debates": "cer", "news": "wer"}
    assert pooled_units(study(pooled), one) == "full.micro"
    assert pooled_units(study(apart), one) is None
    assert pooled_units(study(pooled), even(1)) is None


@settings(max_examples=60)
@given(
    st.dictionaries(st.integers(0, 20), st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1)
)
def test_the_front_has_exactly_what_nothing_dominates(points: dict[int, tuple[int, int]]):
    kept = front(points)
    for number, mine in points.items():
        dominated = any(
            other != mine and other[0] <= mine[0] and other[1] <= mine[1]
            for other in points.values()
        )
        assert (number in kept) == (not dominated)
    assert [points[n][0] for n in kept] == sorted(points[n][0] for n in kept)
