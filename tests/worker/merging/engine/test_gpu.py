"""Merges on a GPU, as far as its stand-in shows them: nothing in two places, the CPU's results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.contract.catalogue import CATALOGUE
from app.planning import cost
from tests.gpu_stand_in import GPU, OnGpu, ThreadWithGpu, gpu, stand_in
from worker.merging.engine import schedule
from worker.merging.engine.job import Job
from worker.merging.engine.run import run, run_all

Make = Callable[..., Job]
SPECTRAL = [name for name, method in CATALOGUE.items() if method.spectral]


@pytest.fixture(autouse=True)
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(schedule, "Thread", ThreadWithGpu)


@pytest.fixture
def document(base_folder: Path, expert_folders: list[Path]) -> Callable[..., dict[str, Any]]:
    def build(method: str, **parameters: Any) -> dict[str, Any]:
        return {
            "checkpoints": [str(expert) for expert in expert_folders[:2]],
            "base": str(base_folder),
            "method": method,
            "parameters": parameters,
            "rules": [{"match": "*decoder.layers*", "method": "keep_base"}],
        }

    return build


def assert_alike(one: Path, other: Path) -> None:
    """Tensors are equal but for what float32 rounds otherwise."""
    expected, found = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        distance = torch.dist(found[name].float(), tensor.float())
        assert distance <= 1e-5 * tensor.float().norm(), name


@pytest.mark.parametrize("way", ["whole", "by row blocks"])
@pytest.mark.parametrize("method", SPECTRAL)
def test_a_merge_on_a_gpu_is_that_on_the_cpu(
    method: str, way: str, make: Make, document: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "by row blocks":
        monkeypatch.setattr(cost, "_LARGE", 0)
        monkeypatch.setattr(cost, "_TALL", 2)
        monkeypatch.setattr(cost, "BLOCK_ENTRIES", 128)
        monkeypatch.setattr(cost, "STRETCH_ENTRIES", 384)
    recipe, before = document(method), OnGpu.made
    on_cpu, on_gpu = (
        run(make(recipe, attempt=str(device), device=str(device))) for device in ("cpu", GPU)
    )
    assert OnGpu.made > before
    assert_alike(on_cpu.folder, on_gpu.folder)
    assert json.loads((on_gpu.folder / "recipe.json").read_text())["device"] == "cuda"
    told = [json.loads((x.folder / "diagnostics.json").read_text()) for x in (on_cpu, on_gpu)]
    assert told[0]["tensors"].keys() == told[1]["tensors"].keys()
    for name, tensor in told[0]["tensors"].items():
        assert told[1]["tensors"][name].keys() == tensor.keys()


@pytest.mark.parametrize("method", ["breadcrumbs", "sce", "ties"])
def test_methods_that_work_entry_by_entry_stay_where_files_are_read(
    method: str, make: Make, document: Any
) -> None:
    recipe, before = document(method), OnGpu.made
    on_cpu, on_gpu = (
        run(make(recipe, attempt=str(device), device=str(device))) for device in ("cpu", GPU)
    )
    assert OnGpu.made == before
    name = "model.safetensors"
    assert (on_cpu.folder / name).read_bytes() == (on_gpu.folder / name).read_bytes()


def test_a_sweep_on_a_gpu_is_its_merges(make: Make, document: Any) -> None:
    options = [{"scaling_coefficient": 0.5}, {"beta": 0.6}]
    recipes = [document("boosted_tsv_m", **some) for some in options]
    jobs = [make(r, attempt=f"sweep{n}", device=str(GPU)) for n, r in enumerate(recipes)]
    for number, (outcome, recipe) in enumerate(zip(run_all(jobs), recipes, strict=True)):
        alone = run(make(recipe, attempt=f"alone{number}", device=str(GPU)))
        assert_alike(alone.folder, outcome.folder)


def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    with gpu():
        there = torch.ones(3, 3).to(GPU)
        assert there.is_cuda
        assert torch.equal((there @ there.mT).cpu(), torch.full((3, 3), 3.0))
        with pytest.raises(RuntimeError, match="some operands are on cuda:0 and some on the CPU"):
            _ = there @ torch.ones(3, 3)
        with pytest.raises(RuntimeError):
            there.numpy()
        with pytest.raises(RuntimeError, match="memory of cuda:0"):
            there.data_ptr()
