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
from app.contract.problems import did_you_mean

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_FIELDS = frozenset({"merge_method", "base_model", "models", "parameters", "dtype", "out_dtype"})
# What says nothing of the arithmetic, or only what is done here anyway.
_IGNORED = frozenset({"int8_mask", "eps"})


@dataclass(frozen=True)
class _Method:
    """Our method, its parameters by mergekit's name, and mergekit's defaults where ours differ."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    weighted: bool = True


_SHARED = {"normalize": "normalize", "lambda": "scaling_coefficient"}
_METHODS = {
    "linear": _Method("soup", {"normalize": "normalize"}),
    "model_stock": _Method("model_stock", {"filter_wise": "filter_wise"}, weighted=False),
    "karcher": _Method("karcher", {"max_iter": "max_iter", "tol": "tol"}, weighted=False),
    "multislerp": _Method("multi_slerp"),
    "slerp": _Method("slerp", {"t": "t"}, weighted=False),
    "task_arithmetic": _Method("task_arithmetic", _SHARED),
    "ties": _Method("ties", {**_SHARED, "density": "density"}, {"density": 1.0}),
    "sce": _Method("sce", {"select_topk": "select_topk"}, weighted=False),
    "breadcrumbs": _Method(
        "breadcrumbs", {**_SHARED, "density": "density", "gamma": "gamma"}, {"density": 1.0}
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
        hint = did_you_mean(str(given), _METHODS)
        known = ", ".join(_METHODS)
        message = f'mergekit\'s "{given}" is not among the methods that both have ({known}).{hint}'
        raise InvalidRequestError.of([Problem(message, "merge_method")])
    for name in document:
        if name not in _FIELDS:
            problems.append(Problem("This part of mergekit's format is not taken here.", str(name)))
    base = document.get("base_model")
    models = _models(document.get("models"), base, problems)
    parameters: dict[str, Any] = {}
    checkpoints = []
    for index, model in models:
        where = f"models[{index}].parameters"
        own = _parameters(model.get("parameters"), where, method, problems)
        weight = own.pop("weight", None)
        checkpoint: dict[str, Any] = {"uri": _uri(model.get("model"))}
        checkpoints.append(checkpoint | ({} if weight is None else {"weight": weight}))
        for name, value in own.items():
            if parameters.setdefault(name, value) != value:
                problems.append(Problem("It must be the same for all models.", f"{where}.{name}"))
    shared = _parameters(document.get("parameters"), "parameters", method, problems)
    weight = shared.pop("weight", None)
    if weight is not None:
        checkpoints = [{"weight": weight} | checkpoint for checkpoint in checkpoints]
    if problems:
        raise InvalidRequestError.of(problems)
    request: dict[str, Any] = {
        "checkpoints": checkpoints,
        "method": method.name,
        # As there: a model's own value goes before the shared one.
        "parameters": {**method.defaults, **shared, **parameters},
    }
    if base is not None:
        request["base"] = _uri(base)
    dtype = document.get("out_dtype") or document.get("dtype")
    if dtype is not None:
        request["output"] = {"dtype": dtype}
    return request


def _models(
    given: object, base: object, problems: list[Problem]
) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the models that are not the base, which mergekit lets a file list once more."""
    if not isinstance(given, list) or not all(isinstance(item, Mapping) for item in given):
        problems.append(Problem("A list of models is needed, each with `model`.", "models"))
        return []
    return [(n, item) for n, item in enumerate(given) if base is None or item.get("model") != base]


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


def _uri(model: object) -> object:
    """Return the URI or path that mergekit's name of a model stands for."""
    if isinstance(model, str) and _HUB.fullmatch(model):
        return f"hf://{model}"
    if isinstance(model, str):
        # mergekit-pytorch names the file, not its folder.
        return re.sub(r"/(model\.safetensors|model\.safetensors\.index\.json)$", "", model)
    return model
