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
            {"models": [{"model": "/a", "parameters": {"density": d}} for d in (0.1, 0.2)]},
            "models[1].parameters.density",
        ),
    ],
)
def test_what_cannot_be_taken_over_is_named(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(document("ties") | changes)
    assert [problem.param for problem in caught.value.as_problems()] == [param]
