"""What diagnostics.json tells of task vectors, whatever the method, the blocks and the attempts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.planning import cost
from tests.tiny_whisper import WEIGHTS
from worker.merging.engine.job import Interrupted, Job, Observer
from worker.merging.engine.run import run, run_all

Make = Callable[..., Job]


def recipe(method: str, base: Path, experts: list[Path]) -> dict[str, Any]:
    return {"base": str(base), "checkpoints": [str(e) for e in experts], "method": method}


def diagnostics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "diagnostics.json").read_text())["tensors"]
    return found


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "sce", "model_stock", "tsv_m"])
def test_norms_and_cosines_are_those_of_the_task_vectors(
    method: str, make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    found = diagnostics(run(make(recipe(method, base_folder, expert_folders))).folder)
    base = load_file(base_folder / WEIGHTS)
    experts = [load_file(folder / WEIGHTS) for folder in expert_folders]
    told = 0
    for name, tensor in base.items():
        if "norms" not in found[name]:
            continue
        told += 1
        vectors = torch.stack([(expert[name] - tensor).flatten().double() for expert in experts])
        norms = vectors.norm(dim=1)
        assert found[name]["norms"] == pytest.approx(norms.tolist(), rel=1e-9)
        if norms.min() > 0:
            cosines = (vectors @ vectors.T) / (norms[:, None] * norms)
            told_cosines = torch.tensor(found[name]["cosines"], dtype=torch.float64)
            assert torch.allclose(told_cosines, cosines, rtol=0, atol=2e-6)
    assert told == len(base)


def test_they_are_the_same_however_a_tensor_is_cut_and_resumed(
    make: Make, base_folder: Path, expert_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = recipe("task_arithmetic", base_folder, expert_folders)
    whole = diagnostics(run(make(document, "whole")).folder)
    monkeypatch.setattr(cost, "STRETCH_ENTRIES", 2**10)
    seen = 0

    def progress(done: int, total: int) -> None:
        nonlocal seen
        seen = done
        if done > total // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(make(document, "cut"), Observer(progress=progress))
    job = make(document, "again")
    resumed = run(make(document, "again", (job.folder.parent / "cut",)))
    assert resumed.adopted_tensors >= seen - 2
    again = diagnostics(resumed.folder)
    for name, told in whole.items():
        assert again[name]["norms"] == pytest.approx(told["norms"], rel=1e-12)


def test_a_sweep_tells_what_each_of_its_points_would(
    make: Make, base_folder: Path, expert_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "BLOCK_ENTRIES", 64)
    monkeypatch.setattr(cost, "STRETCH_ENTRIES", 256)
    document = recipe("model_stock", base_folder, expert_folders)
    points = [document | {"parameters": {"filter_wise": rows}} for rows in (False, True)]
    swept = run_all([make(point, f"swept-{n}") for n, point in enumerate(points)])
    for number, point in enumerate(points):
        alone = run(make(point, f"alone-{number}"))
        assert diagnostics(swept[number].folder) == diagnostics(alone.folder)
