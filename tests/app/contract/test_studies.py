"""What a study's request may say, and what it means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.contract.errors import InvalidRequestError
from app.contract.measures import Measure
from app.contract.spaces import Study, check_study
from app.contract.studies import parse_study


def request(**changes: Any) -> dict[str, Any]:
    sets = [
        {"name": "calls", "uri": "file:///calls.jsonl", "group": "in_domain"},
        {"name": "debates", "uri": "file:///debates.jsonl", "group": "in_domain"},
        {"name": "news", "uri": "file:///news.jsonl", "group": "english"},
    ]
    document = {
        "base": "file:///base",
        "checkpoints": ["file:///one", {"uri": "file:///two", "name": "second"}],
        "candidates": [{"method": "soup"}],
        "development": {"datasets": sets},
        **changes,
    }
    return {name: value for name, value in document.items() if value is not None}


def study(**changes: Any) -> Study:
    return check_study(parse_study(request(**changes)))


def problems(**changes: Any) -> dict[str | None, str]:
    with pytest.raises(InvalidRequestError) as refused:
        study(**changes)
    return {problem.param: problem.message for problem in refused.value.as_problems()}


PARAMETERS = "candidates[0].parameters."
RULE = "candidates[0].rules[0]."


def searching(method: str, **parameters: Any) -> dict[str, Any]:
    return {"candidates": [{"method": method, "parameters": parameters}]}


def test_choices_ranges_weights_and_rules_are_dimensions_and_fill_the_merge_request():
    found = study(
        candidates=[
            {
                "method": "boosted_tsv_m",
                "parameters": {"beta": [0.1, 0.3], "noise_floor": 2.0},
                "weights": {"second": {"low": 0.5, "high": 1.5}},
                "rules": [
                    {
                        "match": "model.encoder.*",
                        "parameters": {"scaling_coefficient": {"low": 0.2, "high": 1.5}},
                    }
                ],
            }
        ]
    )
    names = [dimension.name for dimension in found.spaces[0].dimensions]
    assert names == ["beta", "rules[0].scaling_coefficient", "weights.second"]
    values = {"beta": 0.3, "rules[0].scaling_coefficient": 0.9, "weights.second": 0.75}
    recipe = found.parsed(0, values).recipe
    assert recipe.parameters["beta"] == 0.3
    assert recipe.parameters["noise_floor"] == 2.0
    assert recipe.rules[0].parameters["scaling_coefficient"] == 0.9
    assert recipe.weights == (1.0, 0.75)
    assert found.spaces[0].label(values) == (
        "boosted_tsv_m β=0.3 rules[0].λ=0.9 weights.second=0.75"
    )


def test_a_parameter_that_is_a_whole_number_is_searched_in_whole_numbers():
    (dimension,) = (
        study(candidates=[{"method": "karcher", "parameters": {"max_iter": {"low": 5, "high": 9}}}])
        .spaces[0]
        .dimensions
    )
    assert dimension.integer
    assert dimension.steps == (5, 6, 7, 8, 9)


def test_all_candidates_are_the_methods_that_these_checkpoints_allow():
    two = study(candidates="all")
    methods = {space.candidate.method for space in two.spaces}
    assert {"soup", "boosted_tsv_m", "ties"} <= methods
    assert "slerp" not in methods  # merges two models, and the base is one of them
    assert two.trials == len(two.spaces)
    without_base = {space.candidate.method for space in study(candidates="all", base=None).spaces}
    assert "slerp" in without_base
    assert "boosted_tsv_m" not in without_base


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"candidates": [{"method": "tsv"}]}, "candidates[0].method", 'Did you mean "tsv_m"'),
        (
            {"candidates": [{"method": "ties", "parameters": {"density": [0.1, 3]}}]},
            "candidates[0].parameters.density",
            "at most 1.0",
        ),
        (
            {"candidates": [{"method": "ties", "parameters": {"density": {"low": 1, "high": 0}}}]},
            "candidates[0].parameters.density",
            "must be less than",
        ),
        (
            {"candidates": [{"method": "ties", "parameters": {"density": []}}]},
            "candidates[0].parameters.density",
            "at least one value",
        ),
        (
            {"candidates": [{"method": "soup", "weights": {"secnd": [1, 2]}}]},
            "candidates[0].weights.secnd",
            'Did you mean "second"',
        ),
        ({"objectives": ["inn_domain.macro"]}, "objectives[0]", 'Did you mean "in_domain.macro"'),
        ({"objectives": ["calls", "multilingual.macro"]}, "objectives[1]", "No development set"),
        ({"constraints": [{"set": "nws", "max_wer": 0.1}]}, "constraints[0].set", '"news"'),
        (
            {"constraints": [{"set": "news", "max_regression": 0.1, "against": "third"}]},
            "constraints[0].against",
            "Known: base, one, second",
        ),
        ({"constraints": [{"set": "news"}]}, "constraints[0]", "Give max_regression or max_wer"),
        (
            {"references": [{"name": "second", "uri": "file:///x"}]},
            "references[0].name",
            "choose another",
        ),
        ({"keep": 0}, "keep", '"all"'),
        ({"candidates": "every"}, "candidates", '"all"'),
        ({"search": {"strategy": "cma_es"}}, "search.strategy", "ranges of one candidate"),
        ({"development": None, "objectives": ["all.macro"]}, None, "development"),
        ({"gate": {"max_wer": 0.1}}, None, "test"),
        (
            {
                "gate": {"max_wer": 0.1},
                "development": None,
                "search": {"strategy": "grid"},
                "test": {"datasets": [{"name": "x", "uri": "file:///x.jsonl"}]},
            },
            None,
            "development",
        ),
        ({"objectives": ["in_domain", "in_domain.macro"]}, "objectives", "given twice"),
        ({"candidates": [{"method": "soup", "rules": [{}]}]}, RULE + "match", "is required"),
        (searching("ties", density=[1, 1.0]), PARAMETERS + "density", "given twice"),
        (
            searching("ties", scaling_coefficient={"low": -1e308, "high": 1e308}),
            PARAMETERS + "scaling_coefficient",
            "too far apart",
        ),
        (
            searching("ties", density={"low": 0, "high": 1, "step": 1e-320}),
            PARAMETERS + "density",
            "1 to 1,000,000 steps",
        ),
        (
            searching("ties", density={"low": 0, "high": 1, "step": 3}),
            PARAMETERS + "density",
            "1 to 1,000,000 steps",
        ),
        (
            searching("karcher", max_iter={"low": 1, "high": 3, "step": 0.5}),
            PARAMETERS + "max_iter",
            "whole number",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_by_field(
    changes: dict[str, Any], param: str | None, says: str
):
    assert says in problems(**changes)[param]


@pytest.mark.parametrize(
    ("method", "parameter", "wide"),
    [
        ("karcher", "max_iter", {"low": 5, "high": 9, "step": 0.5}),
        ("karcher", "max_iter", {"low": 5.5, "high": 9}),
        ("task_arithmetic", "scaling_coefficient", {"low": -1e308, "high": 1e308}),
        ("task_arithmetic", "scaling_coefficient", {"low": 0, "high": 1, "step": 1e-300}),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused(
    method: str, parameter: str, wide: dict[str, float]
):
    found = problems(candidates=[{"method": method, "parameters": {parameter: wide}}])
    assert list(found) == [f"candidates[0].parameters.{parameter}"]


def test_a_label_does_not_depend_on_the_order_in_which_a_database_returns_values():
    weights = {"second": [0.5, 1.5]}
    space = study(candidates=[{"method": "ties", "weights": weights, "parameters": {
        "scaling_coefficient": [0.5, 1.0], "density": [0.1, 0.2]}}]).spaces[0]  # fmt: skip
    values = {"scaling_coefficient": 1.0, "density": 0.2, "weights.second": 0.5}
    turned = dict(reversed(values.items()))
    assert space.label(turned) == space.label(values) == "ties λ=1 density=0.2 weights.second=0.5"


def test_a_grid_needs_steps_and_counts_its_points():
    ranged = [
        {"method": "soup"},
        {"method": "ties", "parameters": {"density": {"low": 0.1, "high": 0.5}}},
    ]
    assert (
        "step" in problems(search={"strategy": "grid"}, candidates=ranged)["candidates[1]: density"]
    )
    ranged[1]["parameters"] = {"density": {"low": 0.1, "high": 0.5, "step": 0.1}}
    found = study(search={"strategy": "grid"}, candidates=ranged)
    assert found.trials == 6
    assert [round(point["density"], 6) for point in found.spaces[1].grid()] == [
        0.1, 0.2, 0.3, 0.4, 0.5,
    ]  # fmt: skip


def test_without_development_sets_every_point_is_kept():
    found = study(
        development=None,
        search={"strategy": "grid"},
        candidates=[{"method": "ties", "parameters": {"density": [0.1, 0.2, 0.3]}}],
    )
    assert found.request.keeps_all
    assert found.trials == 3


def test_any_number_of_merges_can_be_kept_and_tested():
    sets = [{"name": "calls", "uri": "file:///test.jsonl"}]
    request = study(keep="all", test={"datasets": sets}).request
    others = tuple(f"merge://mrg_{number:026d}" for number in range(100))
    compared = request.evaluation(others).compare_with
    assert compared[:3] == ("base", "checkpoints", others[0])


COUNTS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1
)


@settings(max_examples=50)
@given(COUNTS)
def test_macro_counts_each_set_once_and_micro_each_word_once(
    counts: dict[str, tuple[int, int]],
):
    errors = {name: wrong for name, (wrong, _) in counts.items()}
    lengths = {name: length for name, (_, length) in counts.items()}
    rated = [name for name in counts if lengths[name]]
    macro = Measure("x", tuple(counts), "macro").rate(errors, lengths)
    micro = Measure("x", tuple(counts), "micro").rate(errors, lengths)
    if not rated:
        assert macro is None
        assert micro is None
        return
    assert macro == pytest.approx(sum(errors[n] / lengths[n] for n in rated) / len(rated))
    words = sum(lengths[n] for n in rated)
    assert micro == pytest.approx(sum(errors[n] for n in rated) / words)
