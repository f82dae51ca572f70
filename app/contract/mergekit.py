"""Converts mergekit configurations to requests, for the methods that both projects have.

Names and defaults are those of mergekit 0.1.5 (`density` is 1 by default, for example). What cannot
be converted is refused by name, never ignored. Four differences remain: arithmetic is in float32
whatever `dtype` says; tokens that experts have beyond the base's are kept; DARE and
DELLA draw other random numbers, and divide by the probability of keeping a change, as their papers
do, where mergekit restores the norm; and DELLA ranks all changes of a convolution's output channel
together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from app.contract.errors import MOST_PROBLEMS, InvalidRequestError, Problem
from app.contract.problems import did_you_mean, shown

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_FIELDS = frozenset({
    "merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer",
})  # fmt: skip
# Does not affect the result.
_IGNORED = frozenset({"int8_mask"})
# mergekit's defaults for parameters of single models.
_DEFAULTS = {"density": 1.0, "gamma": 0.01, "epsilon": 0.15}


@dataclass(frozen=True)
class _Method:
    """Our method, and the parameters of mergekit's.

    Attributes:
        name: our method.
        shared: parameters that mergekit reads only from the file's `parameters`, with our names.
        of_models: parameters that mergekit reads from each model, then from the file's
            `parameters`, then from `_DEFAULTS`; all models must have the same value here.
        only: parameters of which only this value is supported.
        weighted: whether models have weights.
        merges_base: whether the base is merged like any other model; otherwise task vectors are
            relative to it, whether or not it is listed among the models.
    """

    name: str
    shared: Mapping[str, str] = field(default_factory=dict)
    of_models: tuple[str, ...] = ()
    only: Mapping[str, Any] = field(default_factory=dict)
    weighted: bool = True
    merges_base: bool = False


_SHARED = {"normalize": "normalize", "lambda": "scaling_coefficient"}
_UNSCALED, _SCALED = {"rescale": False}, {"rescale": True}
_METHODS = {
    "linear": _Method("soup", {"normalize": "normalize"}, merges_base=True),
    "model_stock": _Method("model_stock", {"filter_wise": "filter_wise"}, weighted=False),
    "karcher": _Method(
        "karcher", {"max_iter": "max_iter", "tol": "tol"}, weighted=False, merges_base=True
    ),
    "multislerp": _Method("multi_slerp", only={"eps": 1e-8, "normalize_weights": True}),
    "slerp": _Method("slerp", {"t": "t"}, weighted=False),
    "task_arithmetic": _Method("task_arithmetic", _SHARED, only=_UNSCALED),
    "ties": _Method("ties", _SHARED, ("density",), _UNSCALED),
    "sce": _Method("sce", {"select_topk": "select_topk"}, weighted=False),
    "breadcrumbs": _Method("breadcrumbs", _SHARED, ("density", "gamma"), _UNSCALED),
    "dare_linear": _Method("dare", _SHARED, ("density",), _SCALED),
    "ram": _Method("ram", {"epsilon": "epsilon"}, weighted=False),
    "della": _Method("della", _SHARED, ("density", "epsilon"), _SCALED),
}


def is_mergekit(document: object) -> bool:
    """Return whether a document is a mergekit configuration."""
    return isinstance(document, Mapping) and "merge_method" in document


def from_mergekit(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request for a mergekit configuration.

    As in mergekit, `org/name` is a model on the hub; write `./org/name` for a folder. Raises
    InvalidRequestError that lists everything that cannot be converted.
    """
    problems: list[Problem] = []
    given = document["merge_method"]
    method = _METHODS.get(given) if isinstance(given, str) else None
    if method is None:
        hint = did_you_mean(given, _METHODS) if isinstance(given, str) else ""
        known = ", ".join(_METHODS)
        message = f"mergekit's method {shown(given)} is not supported; these are: {known}.{hint}"
        raise InvalidRequestError.of([Problem(message, "merge_method")])
    for name, value in islice(document.items(), MOST_PROBLEMS):
        if name not in _FIELDS and value is not None:
            problems.append(Problem("This field of mergekit's format is not supported.", str(name)))
    base = document.get("base_model")
    _check_tokenizer(document, problems)
    shared = _parameters(document.get("parameters"), "parameters", method, problems)
    models = _models(document.get("models"), problems)
    own = [
        _parameters(model.get("parameters"), f"models[{index}].parameters", method, problems)
        for index, model in enumerate(models)
    ]
    for index, found in enumerate(own):
        for name in set(found) & set(method.shared):
            message = "mergekit reads this for all models at once; move it to `parameters`."
            problems.append(Problem(message, f"models[{index}].parameters.{name}"))
    named = [model.get("model") for model in models]
    if method.merges_base and base is not None and base not in named:
        # mergekit adds the base as the last model, without parameters of its own.
        named, own = [*named, base], [*own, {}]
        if method.weighted and "weight" not in shared:
            message = "mergekit averages the base too: list it under `models`, with a weight."
            problems.append(Problem(message, "base_model"))
    merged = [n for n, name in enumerate(named) if method.merges_base or name != base]
    values = _values_of_models(method, {n: {**shared, **own[n]} for n in merged}, problems)
    dtype = _dtype(document, problems)
    _check_names([model.get("model") for model in models], base, problems)
    if problems:
        raise InvalidRequestError.of(problems)
    request: dict[str, Any] = {
        "checkpoints": [_checkpoint(named[n], {**shared, **own[n]}) for n in merged],
        "method": method.name,
        "parameters": {
            **{ours: shared[name] for name, ours in method.shared.items() if name in shared},
            **values,
        },
    }
    # As in mergekit, config and tokenizer come from the base.
    if base is not None and named[merged[0] if merged else 0] != base:
        request["base"] = _uri(base)
    if dtype is not None:
        request["output"] = {"dtype": dtype}
    return request


def _models(given: object, problems: list[Problem]) -> Sequence[Mapping[str, Any]]:
    if isinstance(given, list) and given and all(isinstance(item, Mapping) for item in given):
        return given
    problems.append(Problem("A list of models is needed, each with `model`.", "models"))
    return ()


def _check_names(named: Sequence[object], base: object, problems: list[Problem]) -> None:
    """Add a problem for each model that is not a name or path, or is listed twice."""
    fields = {f"models[{index}].model": name for index, name in enumerate(named)}
    given = fields if base is None else {**fields, "base_model": base}
    for path, name in given.items():
        if not isinstance(name, str) or not name:
            problems.append(Problem("The model's name or path must be a string.", path))
        elif "+" in name and "://" not in name:
            message = (
                "Adapters are not written behind a +; name the adapter's own folder, and the model "
                "that it was trained on as base_model."
            )
            problems.append(Problem(message, path))
    if problems:
        return
    first = {name: path for path, name in reversed(fields.items())}
    message = "The model is listed twice, but mergekit merges it once; add up its weights."
    problems += [Problem(message, path) for path, name in fields.items() if first[name] != path]


def _parameters(
    given: object, where: str, method: _Method, problems: list[Problem]
) -> dict[str, Any]:
    """Return the parameters that affect the merge, by mergekit's names."""
    found: dict[str, Any] = {}
    if given is None:
        return found
    if not isinstance(given, Mapping):
        problems.append(Problem("Must be an object.", where))
        return found
    known = {*method.shared, *method.of_models, *method.only}
    known |= {"weight"} if method.weighted else set()
    for name, value in islice(given.items(), MOST_PROBLEMS):
        path = f"{where}.{name}"
        if name in _IGNORED:
            continue
        if name not in known:
            hint = did_you_mean(str(name), known)
            problems.append(Problem(f"{method.name} has no such parameter.{hint}", path))
        elif isinstance(value, list | Mapping):
            message = "Must be a single value; for values by layer, use `rules` in our own format."
            problems.append(Problem(message, path))
        elif name in method.only:
            if not _equal(value, method.only[name]):
                message = f"{shown(value)} is not supported, only {method.only[name]!r}."
                problems.append(Problem(message, path))
        elif value is not None:
            found[name] = value
    return found


def _equal(value: object, only: object) -> bool:
    # PyYAML reads 1e-8 as text, which mergekit converts to a number.
    try:
        return isinstance(value, bool | int | float | str) and float(value) == only
    except (ValueError, OverflowError):
        return False


def _values_of_models(
    method: _Method, given: Mapping[int, Mapping[str, Any]], problems: list[Problem]
) -> dict[str, Any]:
    """Return the value of each per-model parameter; all models must have the same one.

    `given` has the parameters of the merged models, by their index in the file.
    """
    found: dict[str, Any] = {}
    for name in method.of_models:
        values = {n: own.get(name, _DEFAULTS[name]) for n, own in given.items()}
        found[name] = next(iter(values.values()), _DEFAULTS[name])
        unlike = next((n for n, value in values.items() if value != found[name]), None)
        if unlike is not None:
            message = f"Must be the same for all models (the default is {_DEFAULTS[name]})."
            problems.append(Problem(message, f"models[{unlike}].parameters.{name}"))
    if "gamma" in found:
        _check_gamma(found, problems)
    if found.get("density") == 1 and "epsilon" in found:
        found["epsilon"] = 0.0  # mergekit then keeps everything
    return found


def _check_gamma(found: dict[str, Any], problems: list[Problem]) -> None:
    density, gamma = found["density"], found["gamma"]
    if not all(isinstance(value, int | float) for value in (density, gamma)):
        return  # refused as parameters of our method
    if density == 1:
        # mergekit then keeps everything, including the largest changes.
        found["gamma"] = 0.0
    elif gamma == 0:
        message = "mergekit drops every change if gamma is 0; use `ties`, or our own format."
        problems.append(Problem(message, "parameters.gamma"))
    elif density + gamma > 1:
        message = "density + gamma must be at most 1; otherwise mergekit lowers gamma."
        problems.append(Problem(message, "parameters.gamma"))


def _check_tokenizer(document: Mapping[str, Any], problems: list[Problem]) -> None:
    """Add a problem unless the tokenizer is the base's, as it is here."""
    whole = document.get("tokenizer")
    if whole is not None and document.get("tokenizer_source") is not None:
        problems.append(Problem("Give tokenizer_source or tokenizer, not both.", "tokenizer"))
    named = {"tokenizer_source": document.get("tokenizer_source")}
    if isinstance(whole, Mapping):
        named["tokenizer.source"] = whole.get("source", "")
        for name in islice((name for name in whole if name != "source"), MOST_PROBLEMS):
            message = "This field of mergekit's format is not supported."
            problems.append(Problem(message, f"tokenizer.{name}"))
    elif whole is not None:
        problems.append(Problem("Must be an object.", "tokenizer"))
    for path, source in named.items():
        if source is None:
            continue
        if source != "base":
            message = (
                f'{shown(source)} is not supported, only "base"; tokens that experts have beyond '
                "the base's are kept."
            )
            problems.append(Problem(message, path))
        elif document.get("base_model") is None:
            problems.append(Problem('"base" needs base_model.', path))


def _dtype(document: Mapping[str, Any], problems: list[Problem]) -> str | None:
    """Return the dtype of the stored result."""
    for name in ("out_dtype", "dtype"):
        given = document.get(name)
        if isinstance(given, str) and given:
            return given.removeprefix("torch.")
        if given is not None and given != "":
            problems.append(Problem("The dtype must be a string.", name))
    return None


def _checkpoint(name: object, parameters: Mapping[str, Any]) -> dict[str, Any]:
    weight = {"weight": parameters["weight"]} if "weight" in parameters else {}
    return {"uri": _uri(name), **weight}


def _uri(model: object) -> object:
    """Return the URI or path for a model as mergekit names it."""
    if isinstance(model, str) and _HUB.fullmatch(model):
        return f"hf://{model}"
    if isinstance(model, str):
        # mergekit-pytorch names the file, not its folder.
        return re.sub(r"/(model\.safetensors|model\.safetensors\.index\.json)$", "", model)
    return model
