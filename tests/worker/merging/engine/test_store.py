"""Reductions kept on disk: later merges of the same inputs do not make them again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.planning import cost
from worker.merging.engine import store
from worker.merging.engine.job import Job
from worker.merging.engine.run import run
from worker.merging.local import describe_files

Make = Callable[..., Job]
METHODS: dict[str, dict[str, Any]] = {
    "boosted_tsv_m": {"beta": 0.7},
    "tsv_m": {"rank_fraction": 0.5},
    "iso_c": {"scaling_coefficient": 0.5},
    "karcher": {"max_iter": 2},
    "sce": {},
}


def document(method: str, base: Path, experts: list[Path], **parameters: Any) -> dict[str, Any]:
    based = {} if method == "karcher" else {"base": str(base)}
    checkpoints = [str(expert) for expert in experts]
    return based | {"checkpoints": checkpoints, "method": method, "parameters": parameters}


def digests(job: Job) -> dict[str, str]:
    return {file["name"]: file["sha256"] for file in describe_files(run(job).folder)}


@pytest.mark.parametrize("pieces", ["whole tensors", "small pieces"])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_merge_from_stored_reductions_has_the_same_bytes(
    method: str,
    pieces: str,
    make: Make,
    base_folder: Path,
    expert_folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if pieces == "small pieces":
        monkeypatch.setattr(cost, "BLOCK_ENTRIES", 128)
        monkeypatch.setattr(cost, "STRETCH_ENTRIES", 384)
        monkeypatch.setattr(cost, "_LARGE", 0)
        monkeypatch.setattr(cost, "_TALL", 2)
    changed = document(method, base_folder, expert_folders, **METHODS[method])
    alone = digests(make(changed, "alone"))
    first = document(method, base_folder, expert_folders)
    digests(make(first, "first", reductions_bytes=2**30))
    again = make(changed, "again", reductions_bytes=2**30)
    assert again.store_folder is not None
    before = {path: path.stat().st_ino for path in again.store_folder.iterdir()}
    assert before
    assert digests(again) == alone
    assert {path: path.stat().st_ino for path in again.store_folder.iterdir()} == before


def test_a_search_over_beta_decomposes_the_experts_once(
    make: Make, base_folder: Path, expert_folders: list[Path], decomposed: list[int]
) -> None:
    for number, beta in enumerate((0.1, 0.5, 0.9)):
        recipe = document("boosted_tsv_m", base_folder, expert_folders, beta=beta)
        run(make(recipe, f"{number}", reductions_bytes=2**30))
        if number == 0:
            once = list(decomposed)
    assert once
    assert decomposed == once


def test_other_weights_and_other_inputs_are_other_reductions(
    make: Make, base_folder: Path, expert_folders: list[Path], decomposed: list[int]
) -> None:
    recipe = document("iso_c", base_folder, expert_folders)
    weighted = [{"uri": str(e), "weight": 0.5} for e in expert_folders]
    run(make(recipe, "1", reductions_bytes=2**30))
    once = len(decomposed)
    run(make(recipe | {"checkpoints": weighted}, "2", reductions_bytes=2**30))
    assert len(decomposed) == 2 * once
    run(make(recipe | {"checkpoints": recipe["checkpoints"][:2]}, "3", reductions_bytes=2**30))
    assert len(decomposed) == 3 * once


def test_the_folder_stays_within_its_limit_and_damage_only_costs_time(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    recipe = document("boosted_tsv_m", base_folder, expert_folders)
    expected = digests(make(recipe, "1"))
    job = make(recipe, "2", reductions_bytes=50_000)
    assert digests(job) == expected
    assert job.store_folder is not None
    kept = list(job.store_folder.iterdir())
    assert 0 < sum(path.stat().st_size for path in kept) <= 50_000
    for path in kept:
        path.write_bytes(path.read_bytes()[:100])
    assert digests(make(recipe, "3", reductions_bytes=50_000)) == expected


def test_a_disk_that_is_full_is_left_alone(
    make: Make, base_folder: Path, expert_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(arrays: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError

    asked = document("tsv_m", base_folder, expert_folders)
    with monkeypatch.context() as patch:
        patch.setattr(store, "save_file", cut_off)
        full = make(asked, "full", reductions_bytes=2**30)
        run(full)
    monkeypatch.setattr(
        store.shutil, "disk_usage", lambda _: SimpleNamespace(total=2**40, free=2**29)
    )
    run(make(asked, "nearly", reductions_bytes=2**30))
    assert full.store_folder is not None
    assert list(full.store_folder.iterdir()) == []


def test_trimming_leaves_what_another_worker_is_writing(tmp_path: Path) -> None:
    finished = tmp_path / "a.safetensors"
    written, abandoned = store.partial_of(finished), store.partial_of(finished)
    assert written != abandoned
    for path in (finished, written, abandoned):
        path.write_bytes(b"bytes")
    os.utime(abandoned, (0, 0))
    store.trim(tmp_path, 0)
    assert list(tmp_path.iterdir()) == [written]
