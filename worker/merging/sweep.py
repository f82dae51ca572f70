"""Sweeps in the process: one artifact a point, from one reading of the inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.contract.settings import Settings
from app.contract.sweeps import Point, parse_sweep
from app.services.preparation import prepare, replan, source_policy
from worker.conversion import check_converters, write_formats
from worker.merging.engine.job import Observer
from worker.merging.engine.run import run_all
from worker.merging.local import (
    Gather,
    LocalMerge,
    Progress,
    all_warnings,
    check_reference,
    describe_files,
    fetch_all,
    gathered_by,
    make_job,
    move,
    refuse_taken,
    scratch_beside,
)

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class LocalSweep:
    """A finished folder of folders, one a point, with what each merge had to say."""

    folder: Path
    merges: Mapping[str, LocalMerge]


def sweep_recipe(
    document: Mapping[str, Any],
    swept: Mapping[str, Sequence[Any]],
    output: Path,
    settings: Settings,
    progress: Progress = lambda done, total, unit: None,
    gather: Gather | None = None,
) -> LocalSweep:
    """Merge at every point that the recipe's lists and `swept` span, into `output`/{point}.

    Each artifact is, to the byte, what `merge_recipe` makes of that point's recipe. Beside them
    `sweep.json` lists the points and their files' digests. `output` must not exist, or be empty;
    all of it appears, or nothing does. `gather` is asked if a method needs calibration sets.
    Raises AfluenteError.
    """
    refuse_taken(output)
    points = parse_sweep(document, swept, max_checkpoints=settings.max_checkpoints)
    policy = source_policy(settings, None, any_path=True)
    prepared = prepare(points[0].recipe, policy)
    locals_ = fetch_all(prepared, policy, lambda done, total: progress(done, total, "bytes"))
    check_reference(prepared, locals_, policy)
    also = points[0].recipe.output.also
    check_converters(also)
    planned = [replan(prepared, point.recipe) for point in points]
    recipes = [point.recipe for point in points]
    gathered, said = gathered_by(gather, recipes, prepared, locals_, policy, progress)
    with scratch_beside(output) as scratch:
        jobs = [
            replace(
                make_job(each, locals_, scratch / "merging" / point.name, settings),
                point=point.name,
                statistics=gathered,
            )
            for point, each in zip(points, planned, strict=True)
        ]
        observer = Observer(progress=lambda done, total: progress(done, total, "tensors"))
        outcomes = run_all(jobs, observer)
        for outcome in outcomes:
            write_formats(outcome.folder, also)
        with ThreadPoolExecutor(jobs[0].threads) as pool:
            files = list(pool.map(describe_files, [outcome.folder for outcome in outcomes]))
        finished = scratch / "finished"
        finished.mkdir()
        for point, outcome in zip(points, outcomes, strict=True):
            move(outcome.folder, finished / point.name)
        text = json.dumps(_summary(points, files), indent=2)
        (finished / SWEEP_FILE).write_text(text + "\n", encoding="ascii")
        move(finished, output)
    sources = prepared.sources([local.sha256 for local in locals_])
    merges = {
        point.name: LocalMerge(
            output / point.name, found, (*all_warnings(each, locals_, outcome), *said), sources
        )
        for point, each, outcome, found in zip(points, planned, outcomes, files, strict=True)
    }
    return LocalSweep(output, merges)


def _summary(
    points: Sequence[Point], files: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    kept = ("name", "bytes", "sha256")
    return {
        "method": points[0].recipe.method,
        "points": [
            {
                "folder": point.name,
                "parameters": dict(point.values),
                "files": [{key: file[key] for key in kept} for file in found],
            }
            for point, found in zip(points, files, strict=True)
        ],
    }
