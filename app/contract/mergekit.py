"""mergekit's configuration files, for the methods that both have, as requests of our own.

Names, places and defaults are mergekit 0.1.5's: `density` is 1 unless the file says otherwise, and
so on. What only mergekit has is refused by name, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.contract.errors import InvalidRequestError, Problem
from app.contract.problems import MOST_PROBLEMS, did_you_mean, shown

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_FIELDS = frozenset({"merge_method", "base_model", "models", "parameters", "dtype", "out_dtype"})
# What says nothing of the arithmetic, or only what is done here anyway.
_IGNORED = frozenset({"int8_mask", "eps"})


# What each model may have a value of its own for; mergekit passes all else over there.
_OF_A_MODEL = frozenset({"weight", "density", "gamma"})


@dataclass(frozen=True)
class _Method:
    """Our method, its parameters by mergekit's name, and mergekit's defaults where ours differ.

    `averages_base` says that mergekit treats the base as one of the models, listed or not.
    """

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    weighted: bool = True
    averages_base: bool = False


_SHARED = {"normalize": "normalize", "lambda": "scaling_coefficient"}
_METHODS = {
    "linear": _Method("soup", {"normalize": "normalize"}, averages_base=True),
    "model_stock": _Method("model_stock", {"filter_wise": "filter_wise"}, weighted=False),
    "karcher": _Method(
        "karcher", {"max_iter": "max_iter", "tol": "tol"}, weighted=False, averages_base=True
    ),
    "multislerp": _Method("multi_slerp"),
    "slerp": _Method("slerp", {"t": "t"}, weighted=False),
    "task_arithmetic": _Method("task_arithmetic", _SHARED),
    "ties": _Method("ties", {**_SHARED, "density": "density"}, {"density": 1.0}),
    "sce": _Method("sce", {"select_topk": "select_topk"}, weighted=False),
    "breadcrumbs": _Method(
        "breadcrumbs",
        {**_SHARED, "density": "density", "gamma": "gamma"},
        {"density": 1.0, "gamma": 0.01},
    ),
    "dare_linear": _Method("dare", {**_SHARED, "density": "density"}, {"density": 1.0}),
}


def is_mergekit(document: object) -> bool:
    """Say whether a document is a mergekit configuration and not a request of ours."""
    return isinstance(document, Mapping) and "merge_method" in document


def from_mergekit(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request that a mergekit configuration stands for.

    `org/name` means the hub, as it does there; write `./org/name` for a folder. Raises
    InvalidRequestError that lists everything that cannot be taken over.
    """
    problems: list[Problem] = []
    given = document["merge_method"]
    method = _METHODS.get(given) if isinstance(given, str) else None
    if method is None:
        hint = did_you_mean(str(given), _METHODS) if isinstance(given, str) else ""
        known = ", ".join(_METHODS)
        message = (
            f"mergekit's {shown(given)} is not among the methods that both have ({known}).{hint}"
        )
        raise InvalidRequestError.of([Problem(message, "merge_method")])
    for name, value in document.items():
        if name not in _FIELDS and value is not None:
            problems.append(Problem("This part of mergekit's format is not taken here.", str(name)))
    shared = _parameters(document.get("parameters"), "parameters", method, problems)
    base = document.get("base_model")
    models = _models(document, method, shared, problems)
    own = [
        _own_parameters(model.get("parameters"), f"models[{index}].parameters", method, problems)
        for index, model in models
    ]
    if problems:
        raise InvalidRequestError.of(problems)
    alike = {
        name: [{**method.defaults, **shared, **one}.get(name) for one in own]
        for name in _OF_A_MODEL - {"weight"}
    }
    problems += [
        Problem(
            f"{shown(value)}, and {shown(values[0])} for the first: it must be the same for all "
            "models.",
            f"models[{index}].parameters.{name}",
        )
        for name, values in alike.items()
        for (index, _), value in zip(models, values, strict=True)
        if value != values[0]
    ]
    if problems:
        raise InvalidRequestError.of(problems)
    checkpoints = []
    for (_, model), one in zip(models, own, strict=True):
        weight = one.pop("weight", shared.get("weight"))
        checkpoint = {"uri": _uri(model["model"])}
        checkpoints.append(checkpoint | ({} if weight is None else {"weight": weight}))
    shared.pop("weight", None)
    request: dict[str, Any] = {
        "checkpoints": checkpoints,
        "method": method.name,
        # As there: a model's own value goes before the shared one.
        "parameters": {**method.defaults, **shared, **(own[0] if own else {})},
    }
    if base is not None:
        request["base"] = _uri(base)
    dtype = document.get("out_dtype") or document.get("dtype")
    if dtype is not None:
        request["output"] = {"dtype": dtype}
    return request


def _models(
    document: Mapping[str, Any],
    method: _Method,
    shared: Mapping[str, Any],
    problems: list[Problem],
) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the models to merge with their places in the file.

    mergekit adds the base to them where it is not listed; most methods then set it apart.
    """
    given, base = document.get("models"), document.get("base_model")
    if not isinstance(given, list) or not all(isinstance(item, Mapping) for item in given):
        problems.append(Problem("A list of models is needed, each with `model`.", "models"))
        return []
    if base is not None:
        problems += _problems_of_name(base, "base_model")
    listed: set[str] = set()
    for index, item in enumerate(given):
        model, where = item.get("model"), f"models[{index}].model"
        found = _problems_of_name(model, where)
        if not found and model in listed:
            found = [
                Problem("It is listed twice, and mergekit counts it once: list it once.", where)
            ]
        problems += found
        if isinstance(model, str):
            listed.add(model)
    models = list(enumerate(given))
    if not method.averages_base:
        return [(n, item) for n, item in models if base is None or item.get("model") != base]
    if isinstance(base, str) and base not in listed:
        if method.weighted and "weight" not in shared:
            message = (
                f"mergekit makes the base one of the models that {document['merge_method']} "
                "averages, and here it has no weight: list it under `models` with one, or leave "
                "base_model out."
            )
            problems.append(Problem(message, "base_model"))
        models.append((len(given), {"model": base}))
    return models


def _problems_of_name(model: object, where: str) -> list[Problem]:
    if not isinstance(model, str):
        return [Problem("A model is named by one text: its folder or its name on the hub.", where)]
    if "+" in model:
        return [Problem('After "+" mergekit expects a LoRA adapter; merge it first.', where)]
    return []


def _own_parameters(
    given: object, where: str, method: _Method, problems: list[Problem]
) -> dict[str, Any]:
    """Return the parameters that are given for one model."""
    found = _parameters(given, where, method, problems)
    for name in given if isinstance(given, Mapping) else ():
        if name in method.parameters and name not in _OF_A_MODEL:
            message = "mergekit passes it over in a single model: write it under `parameters`."
            problems.append(Problem(message, f"{where}.{name}"))
    return found


def _parameters(
    given: object, where: str, method: _Method, problems: list[Problem]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if given is None:
        return found
    if not isinstance(given, Mapping):
        problems.append(Problem("An object is needed.", where))
        return found
    known = {**method.parameters, **({"weight": "weight"} if method.weighted else {})}
    for name, value in given.items():
        if len(problems) >= MOST_PROBLEMS:
            break
        path = f"{where}.{name}"
        if name in _IGNORED:
            continue
        if name not in known:
            hint = did_you_mean(str(name), known)
            problems.append(Problem(f"{method.name} has no such parameter here.{hint}", path))
        elif isinstance(value, list | Mapping):
            message = "One value is needed; for values by layer, write `rules` in a recipe of ours."
            problems.append(Problem(message, path))
        else:
            found[known[name]] = value
    return found


def _uri(model: str) -> str:
    """Return the URI or path that mergekit's name of a model stands for."""
    if _HUB.fullmatch(model):
        return f"hf://{model}"
    # mergekit-pytorch names the file, not its folder.
    return re.sub(r"/(model\.safetensors|model\.safetensors\.index\.json)$", "", model)
