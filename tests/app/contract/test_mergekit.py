"""A mergekit configuration becomes an equivalent request, or is refused by name."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from app.contract.catalogue import CATALOGUE
from app.contract.errors import InvalidRequestError
from app.contract.mergekit import _METHODS, from_mergekit
from app.contract.recipe import parse_request

LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("/a")
WORDS = st.sampled_from(
    ["model", "weight", "density", "gamma", "epsilon", "t", "normalize", "eps", "rescale"]
)
VALUE = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
FILE = dict.fromkeys(
    (
        "base_model",
        "models",
        "parameters",
        "dtype",
        "out_dtype",
        "tokenizer",
        "tokenizer_source",
        "x",
    ),
    VALUE,
)
MODEL = st.fixed_dictionaries({"model": LEAF}, optional={"parameters": VALUE})
ANY = st.fixed_dictionaries({}, optional=FILE | {"models": VALUE | st.lists(MODEL, max_size=4)})

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


def test_names_and_weights_are_converted() -> None:
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
def test_every_shared_method_makes_a_valid_recipe(method: str) -> None:
    recipe = parse_request(document(method)).recipe
    assert recipe.method == _METHODS[method].name


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare_linear", "della"])
def test_missing_parameters_have_mergekits_defaults(method: str) -> None:
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
def test_what_cannot_be_converted_is_named(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(document("ties") | changes)
    assert [problem.param for problem in caught.value.as_problems()] == [param]


THREE = [
    {"model": name, "parameters": {"weight": w}} for name, w in (("/b", 1), ("/o", 2), ("/c", 3))
]


def test_linear_and_karcher_average_a_base_that_is_listed_in_its_place() -> None:
    """In mergekit, plan.py adds a base to the models, and both tasks take all of them."""
    for base in ("/b", "/o"):
        found = from_mergekit({"merge_method": "linear", "base_model": base, "models": THREE})
        assert found["checkpoints"] == [
            {"uri": name, "weight": w} for name, w in (("/b", 1), ("/o", 2), ("/c", 3))
        ]
        # The artifact's other files come from the base, which is the first anyway, or said.
        assert found.get("base", "/b") == base
    bare = [{"model": name} for name in ("/b", "/o", "/c")]
    found = from_mergekit({"merge_method": "karcher", "base_model": "/o", "models": bare})
    assert found["checkpoints"] == [{"uri": name} for name in ("/b", "/o", "/c")]


def test_linear_and_karcher_average_a_base_that_is_not_listed() -> None:
    bare = [{"model": name} for name in ("/a", "/b")]
    config = {"base_model": "/base", "models": bare}
    found = from_mergekit({"merge_method": "karcher", **config})
    assert found["checkpoints"] == [{"uri": "/a"}, {"uri": "/b"}, {"uri": "/base"}]
    found = from_mergekit({"merge_method": "linear", "parameters": {"weight": 2}, **config})
    assert found["checkpoints"][2] == {"uri": "/base", "weight": 2}
    # mergekit fails: it has no weight for the base.
    assert refused({"merge_method": "linear", **config}) == ["base_model"]


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "model_stock", "multislerp", "sce"])
def test_other_methods_do_not_merge_a_listed_base(method: str) -> None:
    models = [{"model": name} for name in ("/a", "/base", "/b")]
    found = from_mergekit({"merge_method": method, "base_model": "/base", "models": models})
    assert [entry["uri"] for entry in found["checkpoints"]] == ["/a", "/b"]
    assert found["base"] == "/base"


def refused(config: dict[str, Any]) -> list[str | None]:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(config)
    return [problem.param for problem in caught.value.as_problems()]


def models(*parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"model": f"/{n}", "parameters": given} for n, given in enumerate(parameters)]


@pytest.mark.parametrize(
    ("method", "changes", "params"),
    [
        # mergekit gives a model without a density of its own the default, 1.
        ("ties", {"models": models({"density": 0.3}, {})}, ["models[1].parameters.density"]),
        # Read from the file's own parameters only: those of a model are passed over.
        ("ties", {"models": models({"lambda": 0.5}, {})}, ["models[0].parameters.lambda"]),
        ("slerp", {"models": models({"t": 0.1})}, ["models[0].parameters.t"]),
        ("ties", {"parameters": {"rescale": True}}, ["parameters.rescale"]),
        ("dare_linear", {"parameters": {"rescale": False}}, ["parameters.rescale"]),
        ("multislerp", {"parameters": {"eps": 0.1}}, ["parameters.eps"]),
        ("multislerp", {"parameters": {"eps": "x"}}, ["parameters.eps"]),
        (
            "multislerp",
            {"parameters": {"normalize_weights": False}},
            ["parameters.normalize_weights"],
        ),
        ("della", {"parameters": {"rescale": False}}, ["parameters.rescale"]),
        ("della", {"models": models({"epsilon": 0.1}, {})}, ["models[1].parameters.epsilon"]),
        # mergekit refuses a window beyond 0 and 1 too.
        ("della", {"parameters": {"density": 0.1}}, ["parameters.epsilon"]),
        # Without election of signs: we have no such method.
        ("della", {"merge_method": "della_linear"}, ["merge_method"]),
        ("breadcrumbs", {"parameters": {"density": 0.9, "gamma": 0}}, ["parameters.gamma"]),
        ("breadcrumbs", {"parameters": {"density": 0.995}}, ["parameters.gamma"]),
        ("linear", {"models": [{"model": "/a"}, {"model": "/a"}]}, ["models[1].model"]),
        ("linear", {"models": [{"model": "/a+/lora"}]}, ["models[0].model"]),
        ("linear", {"models": [{"model": {"model": {"path": "/a"}}}]}, ["models[0].model"]),
        ("linear", {"models": []}, ["models"]),
        ("ties", {"base_model": ["/a"]}, ["base_model"]),
        ("ties", {"dtype": 16}, ["dtype"]),
        ("ties", {"out_dtype": "int64"}, ["output.dtype"]),
        ("ties", {"chat_template": "auto"}, ["chat_template"]),
        ("ties", {"tokenizer": {"source": "union"}}, ["tokenizer.source"]),
        ("ties", {"tokenizer": {"tokens": {}}}, ["tokenizer.tokens", "tokenizer.source"]),
        ("ties", {"tokenizer": "base"}, ["tokenizer"]),
        ("ties", {"tokenizer": {"source": "base"}, "tokenizer_source": "base"}, ["tokenizer"]),
        ("linear", {"tokenizer_source": "base"}, ["tokenizer_source"]),
        ("ties", {"modules": {}}, ["modules"]),
        ("karcher", {"parameters": {"weight": 1}}, ["parameters.weight"]),
        ("linear", {"models": [{"model": f"/{n}"} for n in range(40)]}, ["models"]),
    ],
)
def test_ambiguous_parameters_are_refused(
    method: str, changes: dict[str, Any], params: list[str]
) -> None:
    assert refused(document(method) | changes) == params


def test_breadcrumbs_that_keep_everything_keep_the_largest_too() -> None:
    assert from_mergekit(document("breadcrumbs"))["parameters"] == {"density": 1.0, "gamma": 0.0}
    found = from_mergekit(document("breadcrumbs", parameters={"density": 0.5}))
    assert found["parameters"] == {"density": 0.5, "gamma": 0.01}


def test_della_keeps_its_window_and_everything_at_full_density() -> None:
    assert from_mergekit(document("della"))["parameters"] == {"density": 1.0, "epsilon": 0.0}
    given = {"density": 0.4, "lambda": 0.7, "normalize": False, "rescale": True}
    found = from_mergekit(document("della", parameters=given))
    assert (found["method"], found["parameters"]) == (
        "della",
        {"density": 0.4, "epsilon": 0.15, "scaling_coefficient": 0.7, "normalize": False},
    )
    each = models({"density": 0.4, "epsilon": 0.1}, {"density": 0.4, "epsilon": 0.1})
    assert from_mergekit(document("della", models=each))["parameters"]["epsilon"] == 0.1


def test_parameters_without_effect_are_accepted() -> None:
    config = document("multislerp", parameters={"eps": "1e-8", "normalize_weights": True})
    config |= {"slices": None, "tokenizer_source": None, "dtype": "torch.bfloat16"}
    recipe = parse_request(config | {"parameters": {"int8_mask": True}}).recipe
    assert recipe.output.dtype == "bfloat16"


def test_the_tokenizer_may_be_the_base_s_as_it_is_here() -> None:
    plain = from_mergekit(document("ties"))
    assert from_mergekit(document("ties", tokenizer_source="base")) == plain
    assert from_mergekit(document("ties", tokenizer={"source": "base"})) == plain


@settings(max_examples=100, deadline=2000)
@given(method=st.sampled_from([*_METHODS, "x"]), document=ANY)
def test_any_document_is_a_recipe_or_refused(method: str, document: dict[str, Any]) -> None:
    with suppress(InvalidRequestError):
        parse_request({"merge_method": method} | document)


@pytest.mark.parametrize(
    "document",
    [
        {str(n): 1 for n in range(100_000)},
        {"models": [{"model": "/a", "parameters": {str(n): 1 for n in range(100_000)}}]},
        {"models": [{"model": "/a"}] * 100_000},
        {"parameters": {"w" * n: 1 for n in range(1, 2000)}},
    ],
)
def test_a_large_document_is_refused_at_once(document: dict[str, Any]) -> None:
    started = time.process_time()
    assert len(refused({"merge_method": "ties"} | document)) <= 100
    assert time.process_time() - started < 2.0
