"""`python -m study.measure`: measures Full-FT and twelve merges over HTTP."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.contract.errors import NotReadyError
from app.contract.identifiers import merge_uri
from cli.client import Client
from study.choose import COEFFICIENT, RESULTS, best_coefficient
from study.prepare import FOLDER
from study.recipes import EXPERTS, PLAIN, SCALED, evaluation, recipe

_PATIENCE_SECONDS = 3600.0
_KEPT = ("wer", "substitutions", "deletions", "insertions", "reference_words", "utterances")
_WARNINGS = ("empty_hypotheses", "wer_above_one", "compression_ratio_above_2.4")


def main() -> None:
    """Post all merges to the running service, wait, and write docs/study/results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="the service; default: the `afluente up` of the data folder")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    with Client(arguments.url) as client:
        full = _post(client, _full_fine_tuning(folder), ["base"])
        # Only existing merges can be compared with.
        full_id = full["id"]
        document = _rates_when_done(client, full, full_id)
        compared = ["base", "checkpoints", merge_uri(full_id)]
        asked = [
            (_row(method, parameters), _post(client, {**body, "evaluation": tests}, compared))
            for method, parameters in _points()
            for body, tests in [(recipe(folder, method, parameters), evaluation(folder, "test"))]
        ]
        rows = [
            _system(client, full_id, document, "base"),
            {"system": "full-ft", **_system(client, full_id, document)},
        ]
        for number, (row, merge) in enumerate(asked):
            document = _rates_when_done(client, merge, full_id)
            if not number:
                rows += [_system(client, merge["id"], document, name) for name in EXPERTS]
            rows.append({**row, **_system(client, merge["id"], document)})
            _write(rows, document)


def _points() -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each method, with the best λ on the dev sets if it has one."""
    dev = json.loads((RESULTS / "dev.json").read_text())
    yield from ((method, {}) for method in PLAIN)
    yield from ((method, {COEFFICIENT: best_coefficient(dev[method])}) for method in SCALED)


def _row(method: str, parameters: Mapping[str, float]) -> dict[str, Any]:
    return {"system": method, "parameters": dict(parameters)}


def _full_fine_tuning(folder: Path) -> dict[str, Any]:
    """Return the request for Full-FT: a soup of one checkpoint."""
    return {
        "name": "study-full-ft",
        "base": (folder / "base").as_uri(),
        "checkpoints": [(folder / "full-ft").as_uri()],
        "method": "soup",
        "evaluation": evaluation(folder, "test"),
    }


def _post(client: Client, body: Mapping[str, Any], compared: list[str]) -> dict[str, Any]:
    """Post a merge; posting it again, also in a later run, returns the same merge."""
    asked = {**body, "evaluation": {**body["evaluation"], "compare_with": compared}}
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    merge: dict[str, Any] = client.post("/merges", asked, idempotency_key=key)
    print(f"{merge['id']} {body['name']} {body.get('parameters', '')}", flush=True)
    return merge


def _rates_when_done(client: Client, merge: Mapping[str, Any], full_id: str) -> dict[str, Any]:
    """Wait for the merge and return its error rates, with Full-FT's id replaced by its name."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        now = client.get(f"/merges/{merge['id']}")
        ended = {now["status"], now["evaluation"]["status"]}
        if ended == {"succeeded"}:
            text = client.get_text(f"/merges/{merge['id']}/wer")
            return dict(json.loads(text.replace(f'"{full_id}":', '"full-ft":')))
        if ended & {"failed", "cancelled", "partial"}:
            break
        time.sleep(2)
    raise NotReadyError(f"{merge['id']} is {now['status']}, evaluation {now['evaluation']}.")


def _system(
    client: Client, merge_id: str, document: Mapping[str, Any], name: str | None = None
) -> dict[str, Any]:
    """Return the row of the merge, or of the system `name` that it was compared with."""
    results = document if name is None else document["systems"][name]
    averages = {
        group: {
            "macro": results["averages"][group]["macro"],
            "ci95": _ends(results["averages"][group]),
        }
        for group in ("in_domain", "out_of_domain", "full")
    }
    row = {
        "datasets": {dataset["name"]: _dataset(dataset) for dataset in results["datasets"]},
        "averages": averages,
        "capped": _capped(client, merge_id, name or "merge", results["datasets"]),
    }
    return row if name is None else {"system": name, **row}


def _dataset(dataset: Mapping[str, Any]) -> dict[str, Any]:
    compared = {
        name: {
            "delta": found["delta"],
            "delta_ci95": _ends(found, "delta_ci95"),
            "mapsswe_p": found["mapsswe_p"],
        }
        for name, found in dataset.get("compared_with", {}).items()
    }
    return {
        **{name: dataset[name] for name in _KEPT},
        "ci95": _ends(dataset),
        "warnings": {name: dataset["warnings"][name] for name in _WARNINGS},
        "compared_with": compared,
    }


def _ends(results: Mapping[str, Any], name: str = "ci95") -> list[float]:
    return [results[name]["low"], results[name]["high"]]


def _capped(
    client: Client, merge_id: str, system: str, datasets: list[dict[str, Any]]
) -> dict[str, float]:
    """Return macro averages in which an utterance counts at most as many errors as it has words.

    One endless repetition may have more errors than the rest of its set.
    """
    text = client.get_text(f"/merges/{merge_id}/wer/utterances", system=system, format="jsonl")
    errors: dict[str, int] = dict.fromkeys((dataset["name"] for dataset in datasets), 0)
    for line in text.splitlines():
        entry = json.loads(line)
        words = entry["substitutions"] + entry["deletions"] + entry["hits"]
        wrong = entry["substitutions"] + entry["deletions"] + entry["insertions"]
        errors[entry["dataset"]] += min(wrong, words)
    rates: dict[str, list[float]] = {"in_domain": [], "out_of_domain": [], "full": []}
    for dataset in datasets:
        rate = errors[dataset["name"]] / dataset["reference_words"]
        rates[dataset["group"]].append(rate)
        rates["full"].append(rate)
    return {group: sum(found) / len(found) for group, found in rates.items()}


def _write(rows: list[dict[str, Any]], document: Mapping[str, Any]) -> None:
    first = document["datasets"][0]
    units = {dataset["name"]: dataset["ci95"] for dataset in document["datasets"]}
    header = {
        "normalizer": first["normalizer"],
        "decoding": first["decoding"],
        "intervals": {name: [ci["units"], ci["unit"]] for name, ci in units.items()},
    }
    lines = ",\n".join(json.dumps(row) for row in rows)
    text = json.dumps({**header, "rows": []}).replace('"rows": []', f'"rows": [\n{lines}\n]')
    (RESULTS / "results.json").write_text(text + "\n", encoding="ascii")
    print(f"{len(rows)} rows", flush=True)


if __name__ == "__main__":
    main()
