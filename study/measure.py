"""`python -m study.measure`: Full-FT and twelve merges over HTTP, their rates to docs/study."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.contract.errors import NotReadyError
from cli.client import Client
from study.choose import COEFFICIENT, RESULTS, best_coefficient
from study.prepare import FOLDER
from study.recipes import PLAIN, SCALED, evaluation, recipe

_PATIENCE_SECONDS = 3600.0
_KEPT = ("wer", "substitutions", "deletions", "insertions", "reference_words", "utterances")
_WARNINGS = ("empty_hypotheses", "wer_above_one", "compression_ratio_above_2.4")


def main() -> None:
    """Post all merges to the running service, wait, and write docs/study/results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of the service; the one on the data folder if not given")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    with Client(arguments.url) as client:
        full = _post(client, _full_fine_tuning(folder), ["base"])
        full_id = full["id"]
        compared = ["base", "checkpoints", f"merge://{full_id}"]
        asked = [
            (_row(method, parameters), _post(client, {**body, "evaluation": tests}, compared))
            for method, parameters in _points()
            for body, tests in [(recipe(folder, method, parameters), evaluation(folder, "test"))]
        ]
        document = _rates_when_done(client, full)
        rows = [
            {"system": "base", "kind": "model", **_summary(document["systems"]["base"], full_id)},
            {"system": "full-ft", "kind": "model", **_summary(document, full_id)},
        ]
        for number, (row, merge) in enumerate(asked):
            document = _rates_when_done(client, merge)
            if not number:
                rows += [
                    {"system": name, "kind": "model", **_summary(results, full_id)}
                    for name, results in document["systems"].items()
                    if name not in {"base", full_id}
                ]
            rows.append({**row, **_summary(document, full_id)})
            _write(rows, document)


def _points() -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each method, with the λ that the dev sets chose if it has one."""
    dev = json.loads((RESULTS / "dev.json").read_text())
    yield from ((method, {}) for method in PLAIN)
    yield from ((method, {COEFFICIENT: best_coefficient(dev[method])}) for method in SCALED)


def _row(method: str, parameters: Mapping[str, float]) -> dict[str, Any]:
    return {"system": method, "kind": "merge", "parameters": dict(parameters)}


def _full_fine_tuning(folder: Path) -> dict[str, Any]:
    """Return the request that takes one checkpoint as it is: a soup of one."""
    return {
        "name": "study-full-ft",
        "base": (folder / "base").as_uri(),
        "checkpoints": [(folder / "full-ft").as_uri()],
        "method": "soup",
        "evaluation": evaluation(folder, "test"),
    }


def _post(client: Client, body: Mapping[str, Any], compared: list[str]) -> dict[str, Any]:
    asked = {**body, "evaluation": {**body["evaluation"], "compare_with": compared}}
    merge: dict[str, Any] = client.post("/merges", asked, idempotency_key=uuid4().hex)
    print(f"{merge['id']} {body['name']} {body.get('parameters', '')}", flush=True)
    return merge


def _rates_when_done(client: Client, merge: Mapping[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        now = client.get(f"/merges/{merge['id']}")
        ended = {now["status"], now["evaluation"]["status"]}
        if ended == {"succeeded"}:
            return dict(client.get(f"/merges/{merge['id']}/wer"))
        if ended & {"failed", "cancelled", "partial"}:
            break
        time.sleep(2)
    raise NotReadyError(f"{merge['id']} is {now['status']}, evaluation {now['evaluation']}.")


def _summary(results: Mapping[str, Any], full_id: str) -> dict[str, Any]:
    datasets = {
        dataset["name"]: {
            **{name: dataset[name] for name in _KEPT},
            "ci95": [dataset["ci95"]["low"], dataset["ci95"]["high"]],
            "warnings": {name: dataset["warnings"][name] for name in _WARNINGS},
            "compared_with": {
                "full-ft" if name == full_id else name: {
                    "delta": found["delta"],
                    "delta_ci95": [found["delta_ci95"]["low"], found["delta_ci95"]["high"]],
                    "mapsswe_p": found["mapsswe_p"],
                }
                for name, found in dataset.get("compared_with", {}).items()
            },
        }
        for dataset in results["datasets"]
    }
    averages = {
        group: {
            "macro": average["macro"],
            "ci95": [average["ci95"]["low"], average["ci95"]["high"]],
        }
        for group, average in results["averages"].items()
        if group in {"in_domain", "out_of_domain", "full"}
    }
    return {"datasets": datasets, "averages": averages}


def _write(rows: list[dict[str, Any]], document: Mapping[str, Any]) -> None:
    first = document["datasets"][0]
    units = {dataset["name"]: dataset["ci95"] for dataset in document["datasets"]}
    header = {
        "normalizer": first["normalizer"],
        "decoding": first["decoding"],
        "intervals": {name: [ci["units"], ci["unit"]] for name, ci in units.items()},
    }
    text = json.dumps({**header, "rows": rows}, indent=1, ensure_ascii=True)
    (RESULTS / "results.json").write_text(text + "\n", encoding="ascii")
    print(f"{len(rows)} rows", flush=True)


if __name__ == "__main__":
    main()
