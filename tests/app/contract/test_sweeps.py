"""The points of a sweep, and invalid sweeps."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import InvalidRequestError
from app.contract.recipe import parse_request
from app.contract.sweeps import MOST_POINTS, lists_in, parse_sweep

RECIPE = {"base": "m/base", "checkpoints": ["m/a", "m/b"], "method": "boosted_tsv_m"}


def names(document: dict[str, object], **swept: list[object]) -> list[str]:
    return [point.name for point in parse_sweep(document, swept)]


def refusal(document: dict[str, object], **swept: list[object]) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        parse_sweep(document, swept)
    return "\n".join(f"{p.param}: {p.message}" for p in caught.value.as_problems())


def test_lists_in_the_recipe_and_swept_values_mean_the_same() -> None:
    values = [0.3, 1.0]
    listed = RECIPE | {"parameters": {"beta": values, "energy": "squared"}}
    swept = RECIPE | {"parameters": {"energy": "squared", "beta": 0.5}}
    assert lists_in(listed) == {"beta": values}
    assert parse_sweep(listed) == parse_sweep(swept, {"beta": values})


def test_the_grid_has_every_combination_in_order_and_each_point_is_a_recipe_of_its_own() -> None:
    points = parse_sweep(RECIPE, {"scaling_coefficient": [0.5, 1], "rank_fraction": [None, 0.5]})
    assert [point.name for point in points] == [
        "scaling_coefficient=0.5,rank_fraction=null",
        "scaling_coefficient=0.5,rank_fraction=0.5",
        "scaling_coefficient=1.0,rank_fraction=null",
        "scaling_coefficient=1.0,rank_fraction=0.5",
    ]
    for point in points:
        alone = parse_request(RECIPE | {"parameters": dict(point.values)}).recipe
        assert point.recipe == alone


def test_strings_and_booleans_are_swept() -> None:
    assert names(RECIPE, orthogonalization=["polar", "newton_schulz"]) == [
        "orthogonalization=polar",
        "orthogonalization=newton_schulz",
    ]
    soup = {"checkpoints": ["m/a", "m/b"], "method": "soup"}
    assert names(soup, normalize=[True, False]) == ["normalize=true", "normalize=false"]


def test_a_configuration_of_mergekit_is_swept_by_our_names() -> None:
    models = [{"model": "./a"}, {"model": "./b"}]
    document = {"merge_method": "ties", "base_model": "./base", "models": models}
    (first, _) = parse_sweep(document, {"density": [0.2, 0.5]})
    assert first.recipe.method == "ties"
    assert first.recipe.parameters["density"] == 0.2


@pytest.mark.parametrize(
    ("swept", "says"),
    [
        ({"bta": [0.1, 0.2]}, 'parameters.bta: .*no parameter "bta".*Did you mean "beta"'),
        ({"beta": [0.1, 1.5]}, r"parameters.beta: At beta=1.5: Must be at most 1.0, not 1.5"),
        ({"beta": [2.0, 1.5]}, r"At beta=2.0: .*\n.*At beta=1.5: "),
        (
            {"beta": [0.1, 1.5], "rank_fraction": [0.1, 0.2]},
            r"At beta=1.5,rank_fraction=0.1 \(and 1 more\): ",
        ),
        ({"beta": []}, "parameters.beta: The list is empty"),
        ({"seed": [1, 2]}, "seed: .*field of the recipe"),
        ({"beta": ["x"]}, 'not the text "x"'),
        (
            {"orthogonalization": ["polar", "svd"]},
            r"At orthogonalization=svd: Must be one of 'polar' or 'newton_schulz', not .*svd",
        ),
        ({"beta": [0.1, True]}, "At beta=true: Must be a number"),
        ({"beta": [1, 1.0]}, "beta=1.0 is given twice"),
        ({"beta": [0.1] * (MOST_POINTS + 1)}, r"101 points \(101\); at most 100"),
        ({"beta": [0.1] * 20, "rank_fraction": [0.1] * 20}, r"400 points \(20 x 20\)"),
        ({"beta": [[0.1]]}, "afluente merge --sweep"),
    ],
)
def test_what_cannot_be_swept_is_refused_by_name_and_point(
    swept: dict[str, list[object]], says: str
) -> None:
    assert re.search(says, refusal(RECIPE, **swept))


def test_a_problem_at_every_point_is_reported_once() -> None:
    said = refusal(RECIPE | {"base": None}, beta=[0.1, 0.2, 0.3])
    assert said.count("\n") == 0
    assert "needs the base" in said
    assert refusal(RECIPE | {"parameters": 3}, beta=[0.1, 0.2]).startswith("parameters: ")


def test_rules_are_not_swept() -> None:
    rule = {"match": "*", "method": "ties", "parameters": {"density": [0.1, 0.2]}}
    assert "rules[0].parameters.density" in refusal(RECIPE | {"rules": [rule]}, beta=[0.1])


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8, unique=True),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8, unique=True),
)
def test_every_value_is_a_point_with_a_name_that_a_folder_may_have(
    betas: list[float], coefficients: list[float]
) -> None:
    points = parse_sweep(RECIPE, {"beta": betas, "scaling_coefficient": coefficients})
    expected = [{"beta": b, "scaling_coefficient": c} for b in betas for c in coefficients]
    assert [point.values for point in points] == expected
    assert len({point.name for point in points}) == len(points)
    assert all("/" not in point.name and len(point.name) < 200 for point in points)
