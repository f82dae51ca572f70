"""A mergekit configuration becomes the request that means the same, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from app.contract.catalogue import CATALOGUE
from app.contract.errors import InvalidRequestError
from app.contract.mergekit import _METHODS, from_mergekit
from app.contract.recipe import parse_request

TIES = """
merge_method: ties
base_model: openai/whisper-small
models:
  - model: openai/whisper-small
  - model: ./ft/parliament
    parameters: {weight: 0.5, density: 0.3}
  - model: /ft/telephone/model.safetensors
    parameters: {density: 0.3}
parameters: {weight: 2.0, lambda: 0.7, normalize: false, int8_mask: true}
dtype: float32
out_dtype: float16
"""


def test_names_places_and_weights_are_carried_over() -> None:
    assert from_mergekit(yaml.safe_load(TIES)) == {
        "base": "hf://openai/whisper-small",
        "checkpoints": [
            {"uri": "./ft/parliament", "weight": 0.5},
            {"uri": "/ft/telephone", "weight": 2.0},
        ],
        "method": "ties",
        "parameters": {"density": 0.3, "scaling_coefficient": 0.7, "normalize": False},
        "output": {"dtype": "float16"},
    }


def document(method: str, **more: Any) -> dict[str, Any]:
    models = [{"model": "/a"}, {"model": "/b"}][: 1 if method == "slerp" else 2]
    needs_base = CATALOGUE[_METHODS[method].name].base == "required" or method == "slerp"
    return {
        "merge_method": method,
        "models": models,
        **({"base_model": "/base"} if needs_base else {}),
        **more,
    }


@pytest.mark.parametrize("method", list(_METHODS))
def test_every_method_that_both_have_makes_a_valid_recipe(method: str) -> None:
    recipe = parse_request(document(method)).recipe
    assert recipe.method == _METHODS[method].name


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare_linear"])
def test_what_the_file_leaves_out_has_mergekits_default(method: str) -> None:
    assert parse_request(document(method)).recipe.parameters["density"] == 1.0


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"merge_method": "tie"}, "merge_method"),
        ({"slices": []}, "slices"),
        ({"tokenizer_source": "union"}, "tokenizer_source"),
        ({"models": "x"}, "models"),
        ({"parameters": {"densty": 1}}, "parameters.densty"),
        ({"parameters": {"density": [0.1, 0.9]}}, "parameters.density"),
        (
            {
                "models": [
                    {"model": "/a", "parameters": {"density": 0.1}},
                    {"model": "/b", "parameters": {"density": 0.2}},
                ]
            },
            "models[1].parameters.density",
        ),
        # mergekit's default is not what another model says.
        (
            {"models": [{"model": "/a", "parameters": {"density": 0.1}}, {"model": "/b"}]},
            "models[1].parameters.density",
        ),
        (
            {
                "models": [{"model": "/a"}, {"model": "/b", "parameters": {"density": 0.1}}],
                "parameters": {"density": 0.5},
            },
            "models[1].parameters.density",
        ),
        # mergekit reads these of `parameters` alone, and passes them over here.
        (
            {"models": [{"model": "/a", "parameters": {"lambda": 0.5}}, {"model": "/b"}]},
            "models[0].parameters.lambda",
        ),
        (
            {"models": [{"model": "/a", "parameters": {"normalize": False}}, {"model": "/b"}]},
            "models[0].parameters.normalize",
        ),
        # mergekit's tensors are a dictionary by model: a second mention does not count.
        ({"models": [{"model": "/a"}, {"model": "/b"}, {"model": "/a"}]}, "models[2].model"),
        ({"models": [{"model": "/a"}, {"model": "/b+/lora"}]}, "models[1].model"),
        ({"models": [{"model": "/a"}, {"model": {"model": {"path": "/b"}}}]}, "models[1].model"),
        ({"models": [{"model": "/a"}, {}]}, "models[1].model"),
        ({"base_model": "/base+/lora"}, "base_model"),
        ({"base_model": {"model": "/base"}}, "base_model"),
        ({"tokenizer": {"source": "union"}}, "tokenizer"),
        ({"chat_template": "auto"}, "chat_template"),
    ],
)
def test_what_cannot_be_taken_over_is_named(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(document("ties") | changes)
    assert [problem.param for problem in caught.value.as_problems()] == [param]


def averaged(method: str, *models: dict[str, Any], **more: Any) -> list[tuple[str, float | None]]:
    """Return URI and weight of the checkpoints, where `/base` is the base."""
    file = {"merge_method": method, "base_model": "/base", "models": list(models), **more}
    request = parse_request(file).request
    assert request.base is not None
    assert request.base.uri == "/base"
    return [(checkpoint.uri, checkpoint.weight) for checkpoint in request.checkpoints]


def test_what_mergekit_averages_the_base_into_has_it_among_the_checkpoints() -> None:
    base = {"model": "/base", "parameters": {"weight": 3.0}}
    expert = {"model": "/a", "parameters": {"weight": 1.0}}
    assert averaged("linear", base, expert) == [("/base", 3.0), ("/a", 1.0)]
    assert averaged("linear", expert, base) == [("/a", 1.0), ("/base", 3.0)]
    assert averaged("karcher", {"model": "/base"}, {"model": "/a"}) == [
        ("/base", None),
        ("/a", None),
    ]


def test_mergekit_adds_a_base_that_is_not_listed() -> None:
    assert averaged("karcher", {"model": "/a"}, {"model": "/b"}) == [
        ("/a", None),
        ("/b", None),
        ("/base", None),
    ]
    assert averaged("linear", {"model": "/a"}, parameters={"weight": 2.0}) == [
        ("/a", 2.0),
        ("/base", 2.0),
    ]
    with pytest.raises(InvalidRequestError, match=r"base_model.*has no weight"):
        averaged("linear", {"model": "/a", "parameters": {"weight": 1.0}})


@pytest.mark.parametrize(
    "method",
    ["model_stock", "multislerp", "slerp", "task_arithmetic", "ties", "sce", "breadcrumbs"],
)
def test_what_mergekit_sets_the_base_apart_for_has_it_as_base_alone(method: str) -> None:
    experts = [{"model": "/a"}, {"model": "/b"}][: 1 if method == "slerp" else 2]
    wanted = [(str(expert["model"]), None) for expert in experts]
    assert averaged(method, *experts) == wanted
    assert averaged(method, {"model": "/base"}, *experts) == wanted
    assert averaged(method, *experts, {"model": "/base"}) == wanted
