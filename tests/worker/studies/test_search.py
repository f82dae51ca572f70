"""The search: the same rows give the same next trials, whoever asks and whenever."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest

from app.contract.spaces import Study, check_study
from app.contract.studies import parse_study
from worker.studies.search import Choice, Search, Tried, importance

CANDIDATES: list[dict[str, Any]] = [
    {"method": "soup"},
    {"method": "task_arithmetic", "parameters": {"scaling_coefficient": {"low": 0.1, "high": 2.0}}},
    {
        "method": "boosted_tsv_m",
        "parameters": {
            "beta": [0.1, 0.3, 0.5],
            "scaling_coefficient": {"low": 0.1, "high": 2.0},
        },
        "weights": {"two": {"low": 0.5, "high": 1.5}},
    },
]
OF_STRATEGY: dict[str, list[dict[str, Any]]] = {
    "tpe": CANDIDATES,
    "random": CANDIDATES,
    "nsga2": CANDIDATES,
    "cma_es": [
        {
            "method": "task_arithmetic",
            "parameters": {"scaling_coefficient": {"low": 0.1, "high": 2.0}},
            "weights": {"two": {"low": 0.5, "high": 1.5}},
        }
    ],
}


def study(strategy: str, candidates: list[dict[str, Any]], trials: int, **more: Any) -> Study:
    sets = [{"name": "calls", "uri": "file:///calls.jsonl", "group": "in_domain"}]
    document = {
        "base": "file:///base",
        "checkpoints": ["file:///one", "file:///two"],
        "candidates": candidates,
        "search": {"strategy": strategy, "trials": trials, "seed": 7},
        "development": {"datasets": sets},
        **more,
    }
    return check_study(parse_study(document))


def score(choice: Choice) -> tuple[float, ...]:
    """The best point is λ = 1.3, both weights alike."""
    values = choice.values
    lam = values.get("scaling_coefficient", 0.2)
    return ((lam - 1.3) ** 2 + 0.1 * abs(values.get("weights.two", 1.0) - 1.0),)


def run(found: Study, count: int, *, batch: int = 4, from_rows: bool = False) -> list[Tried]:
    """Try `count` points; `from_rows`: with a new search for each batch, as after a crash."""
    search, tried = Search(found), []
    while len(tried) < count:
        if from_rows:
            search = Search(found)
        chosen = search.choose(tried, min(batch, count - len(tried)))
        if not chosen:
            break
        number = len(list(groupby(tried, key=lambda one: one.batch)))
        tried += [
            Tried(number, one.candidate, one.values, score(one) if one.candidate else None)
            for one in chosen
        ]
    return tried


@pytest.mark.parametrize("strategy", OF_STRATEGY)
def test_a_search_that_begins_anew_at_every_batch_asks_for_the_same_points(strategy: str):
    found = study(strategy, OF_STRATEGY[strategy], 18)
    assert run(found, 18, from_rows=True) == run(found, 18)


def test_every_candidate_is_tried_and_no_point_twice():
    tried = run(study("tpe", CANDIDATES, 24), 24)
    assert {one.candidate for one in tried} == {0, 1, 2}
    assert len({Choice(one.candidate, one.values).key for one in tried}) == len(tried) == 24


def test_tpe_finds_a_better_point_than_the_first_ones():
    tried = [one for one in run(study("tpe", CANDIDATES, 40), 40) if one.scores]
    assert min(one.scores for one in tried[20:]) < min(one.scores for one in tried[:10])


def test_a_space_that_is_exhausted_ends_the_search():
    few = [{"method": "ties", "parameters": {"density": [0.1, 0.2, 0.3]}}]
    assert len(run(study("tpe", few, 50), 50)) == 3
    assert len(run(study("random", few, 50), 50)) == 3


@pytest.mark.parametrize("strategy", ["tpe", "random", "nsga2"])
def test_every_point_of_a_discrete_space_is_found_also_after_crashes(strategy: str):
    lambdas = {"low": 0.1, "high": 1.0, "step": 0.1}
    discrete = [
        {"method": "ties", "parameters": {"density": [0.1, 0.2, 0.3]}},
        {"method": "task_arithmetic", "parameters": {"scaling_coefficient": lambdas}},
    ]
    found = study(strategy, discrete, 50)
    tried = run(found, 50)
    assert len(tried) == 13
    assert run(found, 50, from_rows=True) == tried


def test_a_candidate_with_a_range_goes_on_when_the_others_are_exhausted():
    few = [{"method": "ties", "parameters": {"density": [0.1]}}, *OF_STRATEGY["cma_es"]]
    assert len(run(study("tpe", few, 30), 30)) == 30


def test_a_grid_is_worked_through_in_order():
    grid = [{"method": "soup"}, {"method": "ties", "parameters": {"density": [0.3, 0.1]}}]
    tried = run(study("grid", grid, 10), 10)
    assert [one.values.get("density") for one in tried] == [None, 0.3, 0.1]


def test_rows_of_another_version_count_as_they_are():
    found = study("tpe", OF_STRATEGY["cma_es"], 20)
    values = {"scaling_coefficient": 0.7, "weights.two": 0.6}
    tried = [Tried(0, 0, values, (0.5,)), Tried(0, 0, {**values, "weights.two": 0.7}, None)]
    chosen = Search(found).choose(tried, 4)
    assert len(chosen) == 4
    assert chosen == Search(found).choose(tried, 4)


def test_the_parameter_that_decides_is_named():
    tried = [
        Tried(0, 0, one.values, score(Choice(0, one.values)))
        for one in run(study("random", CANDIDATES[2:], 40), 40)
    ]
    shares = importance(study("random", CANDIDATES[2:], 40), tried)["boosted_tsv_m"]
    assert max(shares, key=lambda name: shares[name]) == "scaling_coefficient"
