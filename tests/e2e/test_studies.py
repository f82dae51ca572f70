"""Whatever is killed, whenever, on however many workers: a study ends with the same table."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.stack import Stack, afluente, running

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
SETS = ("telephone", "fast")
UTTERANCES = 8


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of nine trials on a few sample utterances, as a file."""
    folder = tmp_path_factory.mktemp("study")

    def measured(part: str) -> dict[str, Any]:
        sets = []
        for name in SETS:
            speech = SAMPLES / "speech" / name
            lines = (speech / f"{part}.jsonl").read_text().splitlines()
            entries = [json.loads(line) for line in lines[:UTTERANCES]]
            for entry in entries:
                entry["audio_filepath"] = str(speech / entry["audio_filepath"])
            path = folder / f"{name}-{part}.jsonl"
            path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
            sets.append({"name": name, "uri": str(path), "group": "in_domain"})
        return {"datasets": sets, "language": "pt", "num_beams": 1}

    models = SAMPLES / "checkpoints"
    body = {
        "base": str(models / "base"),
        "checkpoints": [str(models / name) for name in SETS],
        "candidates": [
            {"method": "soup"},
            {
                "method": "task_arithmetic",
                "parameters": {"scaling_coefficient": {"low": 0.2, "high": 2.0}},
            },
            {"method": "boosted_tsv_m", "parameters": {"beta": {"low": 0.05, "high": 0.9}}},
        ],
        "search": {"trials": 9, "batch": 3, "seed": 2},
        "development": measured("dev"),
        "test": measured("test"),
        "keep": 2,
    }
    path = folder / "study.json"
    path.write_text(json.dumps(body))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The table that the command line finds in its own process."""
    output = tmp_path_factory.mktemp("local") / "out"
    done = afluente("study", str(recipe), "--output", str(output))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((output / "table.json").read_text())
    return told(found)


def told(table: dict[str, Any]) -> dict[str, Any]:
    """Return the table without identifiers, times and what took how long."""
    rows = {
        part: [
            {key: value for key, value in row.items() if key != "merge_id"}
            for row in table[part]["rows"]
        ]
        for part in ("development", "test")
    }
    return {"trials": table["trials"], "winner": table["winner"], **rows}


def submitted(stack: Stack, recipe: Path) -> str:
    done = afluente("study", str(recipe), "--url", stack.url)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait(stack: Stack, study_id: str, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while True:
        study: dict[str, Any] = stack.get(f"/studies/{study_id}")
        if done(study):
            return study
        assert study["status"] in {"queued", "running"}, study["error"]
        assert time.monotonic() < deadline, stack.log.read_text()
        time.sleep(0.05)


def trials_over(count: int) -> Callable[[dict[str, Any]], bool]:
    return lambda study: (
        study["progress"]["done"] >= count and study["phase"] not in {"preparing", "references"}
    )


def kill_the_child(stack: Stack) -> None:
    worker = psutil.Process(stack.state["children"]["worker 1"])
    max(worker.children(recursive=True), key=lambda process: process.create_time()).kill()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_survives_every_kill_with_the_same_table(
    workers: int, recipe: Path, undisturbed: dict[str, Any], tmp_path: Path
):
    roots = f"{recipe.parent}:{SAMPLES}"
    settings = {"AFLUENTE_FILE_ROOTS": roots, "AFLUENTE_THREADS": "1"}
    with running(tmp_path / "data", workers, **settings) as first:
        study_id = submitted(first, recipe)
        wait(first, study_id, trials_over(1))
        kill_the_child(first)
        wait(first, study_id, trials_over(3))
        for victim in ("valkey", "api", "worker 1"):
            first.kill(victim)
        wait(first, study_id, trials_over(6))
        orphans = first.descendants()
        first.up.kill()
        first.up.wait()
        psutil.wait_procs(orphans, timeout=5)
    with running(tmp_path / "data", workers, **settings) as second:
        study = wait(second, study_id, lambda study: study["status"] == "succeeded")
        assert study["attempt"] >= 2
        assert told(second.get(f"/studies/{study_id}/table")) == undisturbed
        merges = [one["merge_id"] for one in study["outcome"]["kept"]]
        assert len(set(merges)) == 2
        assert {second.get(f"/merges/{one}")["status"] for one in merges} == {"succeeded"}


def test_cancelling_a_study_takes_effect_within_two_seconds(recipe: Path, tmp_path: Path):
    roots = f"{recipe.parent}:{SAMPLES}"
    with running(tmp_path / "data", AFLUENTE_FILE_ROOTS=roots) as stack:
        study_id = submitted(stack, recipe)
        wait(stack, study_id, trials_over(1))
        began = time.monotonic()
        assert stack.http.post(f"/studies/{study_id}/cancel").status_code == 202
        while stack.get(f"/studies/{study_id}")["status"] != "cancelled":
            assert time.monotonic() - began < 2.0
        statuses = {one["status"] for one in stack.get(f"/studies/{study_id}/trials")["data"]}
        assert "running" not in statuses
        assert stack.stop(signal.SIGTERM) == 0
        assert not (stack.data / "up.json").exists()
