"""`python -m study.choose`: sweeps each method's λ and measures the dev sets."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from app.contract.evaluation import EvaluationSpec
from app.contract.settings import Settings
from study.prepare import FOLDER
from study.recipes import COEFFICIENTS, EXPERTS, SCALED, evaluation, recipe
from worker.evaluation.local import evaluate_checkpoint
from worker.merging.sweep import sweep_recipe

RESULTS = Path("docs/study")
COEFFICIENT = "scaling_coefficient"


def main() -> None:
    """Write docs/study/dev.json: the dev sets' average WER by method and λ, and of the models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=[*SCALED])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    file = RESULTS / "dev.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in ("base", *EXPERTS, "full-ft"):
        if name not in found and (folder / name / "model.safetensors").exists():
            found[name] = _rates(folder, folder / name)
            _write(found, file)
    for method in arguments.methods:
        found[method] = _sweep(folder, method)
        _write(found, file)


def _sweep(folder: Path, method: str) -> dict[str, dict[str, float]]:
    """Return the dev rates for every λ; deletes the checkpoints of the sweep."""
    output = folder / "sweep" / method
    shutil.rmtree(output, ignore_errors=True)
    swept = {COEFFICIENT: list(COEFFICIENTS)}
    merges = sweep_recipe(recipe(folder, method, {}), swept, output, Settings()).merges
    rates = {
        point.removeprefix(f"{COEFFICIENT}="): _rates(folder, merge.folder)
        for point, merge in merges.items()
    }
    shutil.rmtree(output)
    return rates


def _rates(folder: Path, checkpoint: Path) -> dict[str, float]:
    asked = evaluation(folder, "dev")
    for dataset in asked["datasets"]:
        dataset["uri"] = dataset["uri"].removeprefix("file://")
    spec = EvaluationSpec.model_validate(asked)
    document = evaluate_checkpoint(checkpoint, spec, Settings(), lambda done, total, unit: None)
    rates = {dataset["name"]: round(dataset["wer"], 4) for dataset in document["datasets"]}
    return {**rates, "average": round(document["averages"]["in_domain"]["macro"], 4)}


def _write(found: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")
    latest = list(found)[-1]
    print(latest, json.dumps(found[latest]), flush=True)


def best_coefficient(rates: dict[str, dict[str, float]]) -> float:
    """Return the λ with the lowest dev average; among equals the smallest."""
    return min(map(float, rates), key=lambda value: (rates[str(value)]["average"], value))


if __name__ == "__main__":
    main()
