"""The catalogue describes all methods, and its errors say what to do."""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.catalogue import (
    CATALOGUE,
    describe,
    parse_method,
    parse_parameters,
    validate_weights,
)
from app.contract.catalogue.method import BaseUse, Family, Space
from app.contract.errors import InvalidRequestError

EVERY_METHOD = list(CATALOGUE)


def problems_of(name, given, **keywords):
    with pytest.raises(InvalidRequestError) as caught:
        parse_parameters(name, given, **keywords)
    return {problem.param: problem.message for problem in caught.value.as_problems()}


def test_methods_come_in_the_order_of_their_families():
    families = [method.family for method in CATALOGUE.values()]
    assert families == sorted(families, key=list(get_args(Family)).index)


@pytest.mark.parametrize("name", EVERY_METHOD)
class TestEveryMethod:
    def test_its_traits_are_complete_and_consistent(self, name):
        method = CATALOGUE[name]
        assert method.name == name
        assert method.base in get_args(BaseUse)
        assert method.space in get_args(Space)
        assert method.min_experts >= 1
        assert method.max_experts is None or method.max_experts >= method.min_experts
        assert method.space == "weights" or method.base != "unused"
        assert method.spectral or not method.of_sum
        assert method.space == "weights" or not method.counts_base
        assert method.needs_calibration == (method.model_validate({}).statistic is not None)
        assert method.paper.url.startswith("https://")
        assert 1970 < method.paper.year < 2100

    def test_its_defaults_are_valid_and_survive_json(self, name):
        defaults = parse_parameters(name, {})
        stored = json.loads(json.dumps(defaults.model_dump(mode="json")))
        assert parse_parameters(name, stored) == defaults

    def test_every_parameter_has_a_description_and_a_default(self, name):
        schema = describe(CATALOGUE[name])["parameters"]
        assert schema["additionalProperties"] is False
        assert not schema.get("required")
        for field in schema["properties"].values():
            assert field["description"].endswith(".")
            assert "default" in field

    def test_its_description_is_json_with_the_published_keys(self, name):
        description = json.loads(json.dumps(describe(CATALOGUE[name])))
        assert set(description) == {
            "name", "title", "family", "summary", "paper", "experts", "base", "weights",
            "needs_calibration", "parameters",
        }  # fmt: skip
        assert set(description["paper"]) == {"title", "authors", "year", "url"}

    def test_parameters_are_frozen(self, name):
        with pytest.raises(ValueError, match="frozen"):
            parse_parameters(name, {}).noise = 1

    @pytest.mark.parametrize("value", [True, "1.0", float("nan"), float("inf"), [1.0], None])
    def test_a_number_is_a_finite_number_and_nothing_else(self, name, value):
        fields = describe(CATALOGUE[name])["parameters"]["properties"]
        for field in (key for key, schema in fields.items() if schema.get("type") == "number"):
            (where, message), *others = problems_of(name, {field: value}).items()
            assert not others
            assert where == f"parameters.{field}"
            assert message.startswith("Must be a ")


def test_a_whole_number_is_a_number():
    assert parse_parameters("task_arithmetic", {"scaling_coefficient": 2}).scaling_coefficient == 2


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("tsvm", "tsv_m"), ("boosted_tsvm", "boosted_tsv_m"), ("taskarithmetic", "task_arithmetic")],
)
def test_a_mistyped_method_gets_a_suggestion(typed, meant):
    with pytest.raises(InvalidRequestError, match=f'Did you mean "{meant}"') as caught:
        parse_method(typed, param="rules[0].method")
    assert caught.value.param == "rules[0].method"


def test_every_wrong_parameter_is_named_at_once():
    wrong = {"beta": 1.5, "rank_fraction": 0, "noise_flor": 1, "lambda": 1, "energy": "square"}
    problems = problems_of("boosted_tsv_m", wrong, param="rules[2].parameters")
    assert set(problems) == {f"rules[2].parameters.{field}" for field in wrong}
    texts = {where.rsplit(".", 1)[1]: text for where, text in problems.items()}
    assert texts["beta"] == "Must be at most 1.0, not 1.5."
    assert texts["rank_fraction"] == "Must be greater than 0.0, not 0."
    assert 'Did you mean "noise_floor"?' in texts["noise_flor"]
    assert 'Did you mean "scaling_coefficient"?' in texts["lambda"]
    assert 'Did you mean "squared"?' in texts["energy"]


def test_another_methods_parameter_is_recognised():
    assert (
        "(It is a parameter of boosted_tsv_m.)"
        in problems_of("tsv_m", {"beta": 0.3})["parameters.beta"]
    )


def test_a_list_is_refused_with_a_hint_at_sweeps():
    message = problems_of("ties", {"density": [0.1, 0.2]})["parameters.density"]
    assert message.startswith("Must be a number, not [0.1, 0.2]. ")
    assert "afluente merge --sweep" in message


@pytest.mark.parametrize("given", [None, [], "beta=0.3", 3])
def test_parameters_must_be_an_object(given):
    assert "Must be an object" in problems_of("soup", given)["parameters"]


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.floats() | st.text(), max_size=4))
def test_any_object_is_parsed_or_refused_with_a_param_each(given):
    try:
        parse_parameters("boosted_tsv_m", given)
    except InvalidRequestError as error:
        for problem in error.as_problems():
            assert problem.param is not None
            assert problem.param.startswith("parameters.")


def test_weights_that_cancel_are_refused_where_they_are_normalised():
    cancelling = [0.1, 0.2, -0.3]
    (problem,) = validate_weights(parse_parameters("soup", {}), cancelling)
    assert "add up to 0" in problem.message
    assert "parameters.normalize" in problem.message
    assert validate_weights(parse_parameters("soup", {"normalize": False}), cancelling) == []
    assert validate_weights(parse_parameters("task_arithmetic", {}), cancelling) == []
    normalised = parse_parameters("task_arithmetic", {"normalize": True})
    assert len(validate_weights(normalised, cancelling)) == 1


def test_a_weight_not_given_counts_as_one():
    assert validate_weights(parse_parameters("soup", {}), [None, -0.5]) == []
    assert len(validate_weights(parse_parameters("soup", {}), [None, -1.0])) == 1


@pytest.mark.parametrize("weights", [None, [], [None, None], [1.0, 2.0], [-1.0, 3.0]])
def test_ordinary_weights_are_accepted(weights):
    for name in (name for name, method in CATALOGUE.items() if method.uses_weights):
        refused = CATALOGUE[name].needs_calibration and weights == [-1.0, 3.0]
        assert len(validate_weights(parse_parameters(name, {}), weights)) == refused


def test_each_weight_that_is_not_finite_is_named():
    weights = [float("nan"), 1.0, float("-inf")]
    problems = validate_weights(parse_parameters("tsv_m", {}), weights)
    assert [p.param for p in problems] == ["checkpoints[0].weight", "checkpoints[2].weight"]


def test_weights_for_a_method_without_them_are_refused():
    class Unweighted(CATALOGUE["soup"]):
        name = "unweighted"
        uses_weights = False

    (problem,) = validate_weights(Unweighted(), [None, 0.5])
    assert problem.param == "checkpoints[1].weight"
    assert validate_weights(Unweighted(), [None, None]) == []
