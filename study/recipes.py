"""The bodies of `POST /studies`: candidates, development and test sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from app.contract.evaluation import Group
from study import domains, recorded
from study.texts import Split

FULL = "full-ft"
_COEFFICIENT = "scaling_coefficient"
# The lowest and highest λ to try. λ = 1/N is the soup for sums of N task vectors; methods that
# average or trim them need more.
_RANGES = {
    "task_arithmetic": (0.1, 1.2),
    "ties": (0.3, 3.0),
    "sce": (0.3, 3.0),
    "pcb": (0.3, 3.0),
    "iso_c": (0.3, 3.0),
    "iso_cts": (0.3, 3.0),
    "tsv_m": (0.3, 2.5),
}
_BETAS = [0.1, 0.3, 0.5]
CANDIDATES: list[dict[str, Any]] = [
    *({"method": method} for method in ("soup", "karcher", "multi_slerp", "model_stock")),
    *(
        {"method": method, "parameters": {_COEFFICIENT: {"low": low, "high": high}}}
        for method, (low, high) in _RANGES.items()
    ),
    {
        "method": "boosted_tsv_m",
        "parameters": {"beta": _BETAS, _COEFFICIENT: {"low": 0.3, "high": 2.0}},
    },
]
_DATA_DRIVEN: list[dict[str, Any]] = [
    {"method": "fisher"},
    {"method": "regmean", "parameters": {"alpha": [0.7, 0.9, 1.0]}},
]
_CALIBRATED_UTTERANCES = 16
RETAINED: tuple[Group, ...] = ("english", "multilingual")
_MOST_REGRESSION = 0.005


def synthetic_recipe(folder: Path) -> dict[str, Any]:
    """Return the study of tiny.en on synthetic speech."""

    def datasets(split: Split) -> list[dict[str, Any]]:
        groups = {domain.name: "in_domain" for domain in domains.IN_DOMAIN}
        if split == "test":
            groups |= {domain.name: "out_of_domain" for domain in domains.OUT_OF_DOMAIN}
        speech = folder / "speech" / split
        return [
            {"name": name, "group": group, "uri": (speech / name / "manifest.jsonl").as_uri()}
            for name, group in groups.items()
        ]

    measured = {"normalizer": "english_spelled"}
    return {
        **_models("tiny.en", folder / "base", folder, [d.name for d in domains.IN_DOMAIN]),
        **_search(trials=60),
        "development": {"datasets": datasets("dev"), "num_beams": 1, **measured},
        "test": {"datasets": datasets("test"), "num_beams": 1, **measured},
    }


def recorded_recipes(folder: Path, base: Path) -> dict[str, dict[str, Any]]:
    """Return the studies of multilingual base by the names of their files.

    The paper's methods; the same with limits on what is lost; data-driven methods; LoRA experts.
    """
    recipe = {
        **_models("base", base, folder, recorded.EXPERTS),
        **_search(trials=40),
        "development": {
            "datasets": _recorded(folder, "dev", (one for one in recorded.SETS if one.dev)),
            "num_beams": 1,
        },
        "test": {"datasets": _recorded(folder, "test", recorded.SETS), "num_beams": 1},
    }
    constraints = [
        {"set": group, "max_regression": _MOST_REGRESSION, "against": "base"} for group in RETAINED
    ]
    retaining = {**recipe, "name": f"{recipe['name']}-retention", "constraints": constraints}
    data_driven = {
        **recipe,
        **_models("base-data", base, folder, recorded.EXPERTS),
        **_calibrated(folder, recorded.EXPERTS),
    }
    adapters = [lora(expert) for expert in recorded.EXPERTS]
    adapted = {
        **recipe,
        **_models("base-lora", base, folder, adapters),
        **_calibrated(folder, adapters),
        "candidates": [*CANDIDATES, {"method": "knots"}, *_DATA_DRIVEN],
    }
    return {
        "recipe": recipe,
        "recipe-retention": retaining,
        "recipe-data": data_driven,
        "recipe-lora": adapted,
    }


def lora(expert: str) -> str:
    """Return the name of an expert that was trained as a LoRA."""
    return f"{expert}-lora"


def _calibrated(folder: Path, experts: Sequence[str]) -> dict[str, Any]:
    """Return the data-driven candidates, with the experts' training speech to calibrate them."""
    calibration = [
        {"name": trained, "expert": expert, "uri": manifest(folder, "train", trained).as_uri()}
        for trained, expert in zip(recorded.EXPERTS, experts, strict=True)
    ]
    return {
        "candidates": [{"method": "soup"}, *_DATA_DRIVEN],
        "calibration": {"datasets": calibration, "utterances": _CALIBRATED_UTTERANCES},
    }


def _models(name: str, base: Path, folder: Path, experts: Iterable[str]) -> dict[str, Any]:
    return {
        "name": f"study-{name}",
        "base": base.as_uri(),
        "checkpoints": [{"name": expert, "uri": (folder / expert).as_uri()} for expert in experts],
        "references": [{"name": FULL, "uri": (folder / FULL).as_uri()}],
    }


def _search(trials: int) -> dict[str, Any]:
    return {
        "candidates": CANDIDATES,
        "search": {"strategy": "tpe", "trials": trials, "seed": 0, "racing": True},
        "objectives": ["in_domain.macro"],
        "keep": 3,
    }


def _recorded(
    folder: Path, split: Split, sets: Iterable[recorded.RecordedSet]
) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "group": one.group,
            "uri": manifest(folder, split, one.name).as_uri(),
            "language": one.language,
            "normalizer": one.normalizer,
        }
        for one in sets
    ]


def manifest(folder: Path, split: Split, name: str) -> Path:
    """Return the manifest of a recorded set's split."""
    return folder / "speech" / split / f"{name}.jsonl"
