"""Merges that share a reading: each is, to the byte, what it is alone, and work is shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.contract.errors import OutputOverflowError, UndefinedMergeError
from tests.tiny_whisper import variant
from worker.merging.engine.job import Job, Observer
from worker.merging.engine.run import run, run_all
from worker.merging.linalg.draws import bernoulli
from worker.merging.local import describe_files
from worker.merging.methods import dare
from worker.merging.native import Sources

Make = Callable[..., Job]
Points = list[dict[str, Any]]

# Parameters that share everything, some surveys, none; and such as cut tensors otherwise.
SWEEPS: dict[str, Points] = {
    "task_arithmetic": [{"scaling_coefficient": x} for x in (-0.5, 0.0, 0.3, 1.0)],
    "ties": [{"density": d, "scaling_coefficient": x} for d in (0.1, 1.0) for x in (0.4, 1.0)]
    + [{"scope": "model"}, {"scope": "model", "density": 0.5}],
    "pcb": [{"ratio": r} for r in (0.1, 1.0)] + [{"scope": "model"}],
    "sce": [{"select_topk": k} for k in (0.2, 0.5, 1.0)],
    "breadcrumbs": [{"gamma": 0.0, "density": 1.0}, {"gamma": 0.2}, {"density": 0.3}],
    "dare": [{"density": 0.3}, {"density": 0.5, "normalize": True}],
    "iso_c": [{"scaling_coefficient": x} for x in (0.3, 1.0)] + [{"noise_floor": 0.0}],
    "iso_cts": [{"common_space_fraction": c} for c in (0.0, 0.5)],
    "tsv_m": [{"rank_fraction": r} for r in (None, 0.5, 1.0)]
    + [{"orthogonalization": "newton_schulz"}],
    "boosted_tsv_m": [{"beta": b, "scaling_coefficient": x} for b in (0.3, 1.0) for x in (0.3, 1.0)]
    + [{"rank_fraction": 0.1}, {"noise_floor": 0.0}],
    "soup": [{"normalize": True}, {"normalize": False}],
    "karcher": [{"max_iter": 1}, {"max_iter": 10}],
    "model_stock": [{"filter_wise": False}, {"filter_wise": True}],
    "slerp": [{"t": 0.0}, {"t": 0.3}],
    "nuslerp": [{"axis": None}, {"axis": 0}, {"axis": -1}],
}


def document(method: str, base: Path, experts: list[Path]) -> dict[str, Any]:
    rule = {"match": "*layers.0.fc1.weight", "method": "soup", "parameters": {"normalize": False}}
    pair = method in {"slerp", "nuslerp"}
    return {
        "base": None if method in {"soup", "karcher", "slerp"} else str(base),
        "checkpoints": [str(expert) for expert in (experts[:2] if pair else experts)],
        "method": method,
        "rules": [rule, {"match": "*conv2*", "method": "keep_base"}],
    }


def digests(folder: Path) -> dict[str, str]:
    return {file["name"]: file["sha256"] for file in describe_files(folder)}


@pytest.fixture
def make_points(make: Make, base_folder: Path, expert_folders: list[Path]) -> Callable[..., Any]:
    """Return a function from a method and its points' parameters to their jobs."""

    def build(method: str, points: Points, attempt: str, **extra: Any) -> list[Job]:
        recipe = document(method, base_folder, expert_folders)
        return [
            replace(make(recipe | {"parameters": point}, f"{attempt}-{n}", **extra), point=str(n))
            for n, point in enumerate(points)
        ]

    return build


@pytest.mark.parametrize("method", list(SWEEPS))
@pytest.mark.usefixtures("small_pieces")
def test_every_one_of_merges_run_together_is_what_it_is_alone_to_the_byte(
    method: str, make_points: Callable[..., list[Job]]
) -> None:
    points = SWEEPS[method]
    together = run_all(make_points(method, points, "together", threads=2))
    alone = [run(job) for job in make_points(method, points, "alone", threads=1)]
    for point, both, one in zip(points, together, alone, strict=True):
        assert digests(both.folder) == digests(one.folder), point
        assert both.warnings == one.warnings
    assert len({digests(outcome.folder)["model.safetensors"] for outcome in alone}) > 1


def test_equal_experts_are_copied_only_where_the_method_alone_would(
    make: Make, expert_folders: list[Path]
) -> None:
    pair = {"checkpoints": [str(expert_folders[0])] * 2, "method": "soup"}
    points = [{"normalize": True}, {"normalize": False}]
    jobs = [make(pair | {"parameters": p}, f"both-{n}") for n, p in enumerate(points)]
    alone = [make(pair | {"parameters": p}, f"alone-{n}") for n, p in enumerate(points)]
    for outcome, job in zip(run_all(jobs), alone, strict=True):
        assert digests(outcome.folder) == digests(run(job).folder)


@pytest.mark.parametrize(
    ("method", "points"),
    [
        ("task_arithmetic", [{"scaling_coefficient": x} for x in (0.1, 0.2, 0.3)]),
        ("ties", [{"scaling_coefficient": x} for x in (0.1, 0.2, 0.3)]),
        ("ties", [{"density": x} for x in (0.1, 0.2, 0.3)]),
        ("pcb", [{"ratio": x} for x in (0.1, 0.2, 0.3)]),
        ("boosted_tsv_m", [{"beta": x} for x in (0.1, 0.2, 0.3)]),
    ],
)
def test_inputs_are_read_as_often_for_several_merges_as_for_one(
    method: str,
    points: Points,
    make_points: Callable[..., list[Job]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: Counter[int] = Counter()

    def counting(name: str) -> None:
        real = getattr(Sources, name)

        def counted(sources: Sources, start: int, *rest: Any, **options: Any) -> int:
            reads[start] += 1
            found: int = real(sources, start, *rest, **options)
            return found

        monkeypatch.setattr(Sources, name, counted)

    for name in ("read", "combine", "add_inner_products"):
        counting(name)
    run(make_points(method, points[:1], "one")[0])
    one = Counter(reads)
    reads.clear()
    run_all(make_points(method, points, "several"))
    assert reads == one


@pytest.mark.parametrize("parameter", ["beta", "rank_fraction", "scaling_coefficient"])
def test_spectra_are_made_once_for_all_points(
    parameter: str, make_points: Callable[..., list[Job]], decomposed: list[int]
) -> None:
    points = [{parameter: value} for value in (0.1, 0.5, 1.0)]
    run_all(make_points("boosted_tsv_m", points[:1], "one", threads=1))
    one = len(decomposed)
    run_all(make_points("boosted_tsv_m", points, "several", threads=1))
    assert one
    assert len(decomposed) == 2 * one


@pytest.mark.usefixtures("small_pieces")
def test_methods_of_one_run_share_equal_reductions(
    make: Make, base_folder: Path, expert_folders: list[Path], decomposed: list[int]
) -> None:
    methods = ("tsv_m", "boosted_tsv_m", "task_arithmetic", "ties")
    recipes = [document(method, base_folder, expert_folders) for method in methods]
    alone = [run(make(r, f"alone-{n}")) for n, r in enumerate(recipes)]
    spectra = len(decomposed)
    together = run_all([make(r, f"together-{n}") for n, r in enumerate(recipes)])
    assert len(decomposed) - spectra == spectra // 2
    for one, both in zip(alone, together, strict=True):
        assert digests(both.folder) == digests(one.folder)


def test_lambda_costs_no_merge_of_its_own(
    make_points: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, ...]] = []

    def counted(*asked: Any) -> torch.Tensor:
        drawn.append(asked)
        return bernoulli(*asked)

    monkeypatch.setattr(dare, "bernoulli", counted)
    points = [{"scaling_coefficient": x / 10} for x in range(1, 11)]
    jobs = make_points("dare", points, "ten")
    run_all(jobs)
    assert max(Counter(drawn).values()) == 1


def test_a_value_that_overflows_names_the_point(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    recipe = document("task_arithmetic", base_folder, expert_folders) | {
        "output": {"dtype": "float16"}
    }
    jobs = [
        replace(make(recipe | {"parameters": {"scaling_coefficient": x}}, str(x)), point=f"λ={x}")
        for x in (0.5, 1e8)
    ]
    with pytest.raises(OutputOverflowError, match=r"At λ=100000000.0: model\.\S+: a merged value"):
        run_all(jobs)


def test_what_is_undefined_names_the_point(
    make: Make, expert_folders: list[Path], tmp_path: Path
) -> None:
    opposite = variant(expert_folders[0], tmp_path / "opposite", lambda n, t: -t)
    recipe = {"checkpoints": [str(expert_folders[0]), str(opposite)], "method": "karcher"}
    jobs = [
        replace(make(recipe | {"parameters": {"max_iter": n}}, str(n)), point=f"max_iter={n}")
        for n in (1, 2)
    ]
    with pytest.raises(UndefinedMergeError, match=r"At max_iter=1: model"):
        run_all(jobs)


def test_progress_counts_tensors_once_and_ends_at_their_number(
    make_points: Callable[..., list[Job]],
) -> None:
    seen: list[tuple[int, int]] = []
    observer = Observer(progress=lambda done, total: seen.append((done, total)))
    points: Points = [{"scope": "tensor"}, {"scope": "model"}, {"scope": "model", "density": 0.5}]
    jobs = make_points("ties", points, "parts")
    run_all(jobs, observer)
    tensors = len(jobs[0].plan.steps)
    assert seen[-1] == (tensors, tensors)
    assert seen == sorted(seen)
