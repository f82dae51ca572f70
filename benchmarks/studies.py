"""`python -m benchmarks.studies`: what a study costs, on the samples or on a recipe's sets.

Three figures: the winner of a raced TPE search against the best of the full grid, and the audio
that both decode; what everything but decoding takes of a trial; two workers against one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from app.contract.settings import Settings
from app.storage import studies
from app.storage.database import connect, reading
from app.storage.tables import study_pieces, study_trials
from cli.recipes import read_recipe, with_absolute_paths
from worker.study_local import run_study

_ROOT = Path(__file__).resolve().parents[1]
GRID: list[dict[str, Any]] = [
    {"method": "soup"},
    *(
        {
            "method": method,
            "parameters": {"scaling_coefficient": {"low": 0.1, "high": 1.6, "step": 0.1}},
        }
        for method in ("task_arithmetic", "ties", "tsv_m")
    ),
    {
        "method": "boosted_tsv_m",
        "parameters": {
            "beta": [0.1, 0.2, 0.3, 0.4, 0.5],
            "scaling_coefficient": {"low": 0.1, "high": 1.6, "step": 0.1},
        },
    },
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", type=Path, default=_ROOT / "samples" / "study.yaml")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--only", choices=("search", "workers"))
    parser.add_argument("--worker-trials", type=int, default=16)
    arguments = parser.parse_args()
    body = with_absolute_paths(read_recipe(arguments.recipe))
    body = {name: value for name, value in body.items() if name not in {"test", "constraints"}}
    body |= {"keep": 1, "candidates": GRID}
    with tempfile.TemporaryDirectory(prefix="afluente-studies-") as folder:
        if arguments.only != "workers":
            _compare_searches(body, Path(folder), arguments.trials)
        if arguments.only != "search":
            _compare_workers(body, Path(folder), arguments.worker_trials)


def _compare_searches(body: Mapping[str, Any], folder: Path, trials: int) -> None:
    grid = {**body, "search": {"strategy": "grid", "racing": False}}
    raced = {**body, "search": {"strategy": "tpe", "trials": trials, "seed": 0}}
    full = _measured(grid, folder / "grid")
    found = _measured(raced, folder / "tpe")
    print("| search | trials | complete | decoded audio, s | best dev WER | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, one in (("grid, all decoded", full), (f"tpe, {trials} trials, raced", found)):
        print(
            f"| {name} | {one['trials']} | {one['complete']} | {one['audio']:.0f} | "
            f"{100 * one['best']:.2f} | {one['seconds']:.0f} |"
        )
    points = 100 * (found["best"] - full["best"])
    print(f"\nThe winner is {points:+.2f} points from the grid's best (mark: 0.2), for ", end="")
    print(f"{found['audio'] / full['audio']:.3f} of its audio (mark: 0.25).")
    print(f"Of a trial's time, {100 * full['overhead']:.1f} % is not decoding (mark: 10 %).")


def _measured(body: Mapping[str, Any], output: Path) -> dict[str, float]:
    began = time.monotonic()
    study = run_study(body, output, Settings(), lambda kind, data: None)
    seconds = time.monotonic() - began
    engine = connect(output / "data" / "afluente.db")
    try:
        rows = studies.trials(engine, study.id)
        with reading(engine) as connection:
            pieces = list(connection.execute(study_pieces.select()).mappings())
    finally:
        engine.dispose()
    mine = [piece for piece in pieces if piece["system"].startswith("#")]
    utterances = [u for piece in mine for r in piece["result"] for u in r["result"]["utterances"]]
    fresh = [one for one in utterances if not one["cached"]]
    taken = sum(piece["finished_at"] - piece["started_at"] for piece in mine)
    complete = [row for row in rows if row["status"] == "complete"]
    return {
        "trials": len(rows),
        "complete": len(complete),
        "audio": sum(one["audio_seconds"] for one in fresh),
        "best": min(row["scores"]["objectives"][0] for row in complete),
        "seconds": seconds,
        "overhead": 1 - sum(one["decode_seconds"] for one in fresh) / taken,
    }


def _compare_workers(body: Mapping[str, Any], folder: Path, trials: int) -> None:
    raced = {**body, "search": {"strategy": "tpe", "trials": trials, "seed": 0}}
    print("\n| workers, one thread each | trials | search, s | trials a minute |")
    print("| ---: | ---: | ---: | ---: |")
    rates = []
    for workers in (1, 2):
        seconds = _served(raced, folder / f"workers-{workers}", workers)
        rates.append(trials / seconds)
        print(f"| {workers} | {trials} | {seconds:.1f} | {60 * trials / seconds:.1f} |")
    print(f"\nTwo workers give {rates[1] / rates[0]:.2f} times the trials of one (mark: 1.7).")


def _served(body: Mapping[str, Any], data: Path, workers: int) -> float:
    """Return the seconds from a study's first trial to the end of its last one."""
    environment = {"AFLUENTE_THREADS": "1", "OMP_NUM_THREADS": "1", "AFLUENTE_FILE_ROOTS": "/"}
    command = [sys.executable, "-P", "-m", "cli.main", "up", "--port", "0"]
    command += ["--data-dir", str(data), "--workers", str(workers)]
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    )
    try:
        state = data / "up.json"
        while not state.exists():
            time.sleep(0.2)
        url = json.loads(state.read_text())["url"]
        with httpx2.Client(base_url=url, timeout=60) as client:
            while _alive(client) < workers:
                time.sleep(0.5)
            study_id = client.post("/studies", json=body).json()["id"]
            while client.get(f"/studies/{study_id}").json()["status"] in {"queued", "running"}:
                time.sleep(1)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    engine = connect(data / "afluente.db")
    with reading(engine) as connection:
        rows = list(connection.execute(study_trials.select()).mappings())
    engine.dispose()
    shutil.rmtree(data)
    return float(max(r["finished_at"] for r in rows) - min(r["created_at"] for r in rows))


def _alive(client: httpx2.Client) -> int:
    lines = client.get("/metrics").text.splitlines()
    found = [line.split()[1] for line in lines if line.startswith("afluente_workers ")]
    return int(float(found[0]))


if __name__ == "__main__":
    main()
