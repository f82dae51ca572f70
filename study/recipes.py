"""The study's twelve methods, their candidates for λ, and the evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study.domains import IN_DOMAIN, OUT_OF_DOMAIN

EXPERTS = tuple(domain.name for domain in IN_DOMAIN)
PLAIN = ("soup", "model_stock", "karcher", "multi_slerp")
SCALED = ("task_arithmetic", "ties", "pcb", "sce", "iso_c", "iso_cts", "tsv_m", "boosted_tsv_m")
# λ = 1/3 is the soup. The first two suit sums of task vectors, the last two their averages.
COEFFICIENTS = (0.5, 1.0, 1.5)


def recipe(folder: Path, method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of `POST /merges` for the three experts, without an evaluation."""
    return {
        "name": f"study-{method}",
        "base": (folder / "base").as_uri(),
        "checkpoints": [(folder / name).as_uri() for name in EXPERTS],
        "method": method,
        "parameters": dict(parameters),
    }


def evaluation(folder: Path, split: str) -> dict[str, Any]:
    """Return the `evaluation` of a request: greedy decoding of a split's sets."""
    groups = {domain.name: "in_domain" for domain in IN_DOMAIN}
    if split == "test":
        groups |= {domain.name: "out_of_domain" for domain in OUT_OF_DOMAIN}
    return {
        "datasets": [
            {
                "name": name,
                "group": group,
                "uri": (folder / "speech" / split / name / "manifest.jsonl").as_uri(),
            }
            for name, group in groups.items()
        ],
        "normalizer": "english_spelled",
        "num_beams": 1,
    }
