"""Turns a finished merge of adapters into an adapter again, by truncated singular values."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.contract.tensors import ADAPTER_PREFIX, TensorHeader
from app.planning.layout import OutputFile, factor_names
from app.planning.plan import Step
from app.sources.adapters import ADAPTER_CONFIG
from app.sources.completion import encoded
from worker.merging.engine.job import Job
from worker.merging.engine.read import DTYPES, TensorReader
from worker.merging.linalg.low_rank import low_rank

_VISIBLE = 0.01
"""A relative error that is worth a warning."""


def write_adapter(
    job: Job, file: OutputFile, folder: Path, check: Callable[[], None]
) -> dict[str, Any]:
    """Put the adapter of a merge into its folder instead of the merged weights.

    Return, for diagnostics.json, ‖(merge − base) − B·A‖ / ‖merge − base‖ of each tensor and of all.
    `check` raises to interrupt.
    """
    merged = {tensor.name: tensor for weights in job.plan.files for tensor in weights.tensors}
    places = {tensor.name: tensor for tensor in file.tensors}
    steps = [step for step in job.plan.steps if factor_names(step.name)[0] in places]
    dtype = DTYPES[file.tensors[0].dtype]
    assert job.base is not None

    def opened(name: str) -> FileIO:
        return FileIO(folder / name)

    with (
        TensorReader(job.labels[0], job.base.resolved.tensors, job.base.open) as base,
        TensorReader("the merge", merged, opened) as merge,
        (folder / file.name).open("wb") as target,
    ):
        target.truncate(file.size_bytes)
        os.pwrite(target.fileno(), file.header, 0)

        def factor(step: Step) -> tuple[float, float]:
            check()
            shape, entries = step.target.shape, step.target.numel
            change = merge.values(step.name, 0, entries) - base.values(step.name, 0, entries)
            change = change.view(shape)
            right, left = factor_names(step.name)
            a, b = (made.to(dtype) for made in low_rank(change, places[right].shape[0]))
            for name, made in ((right, a), (left, b)):
                _write(target.fileno(), places[name], made)
            left_over = change.double() - b.double() @ a.double()
            return float(left_over.square().sum()), float(change.double().square().sum())

        # Each matrix on one thread: then the bytes do not depend on how many there are.
        with ThreadPoolExecutor(job.threads, "adapt", torch.set_num_threads, (1,)) as pool:
            squares = list(pool.map(factor, steps))
    for weights in job.plan.files:
        (folder / weights.name).unlink()
    errors = {step.name: _ratio(*found) for step, found in zip(steps, squares, strict=True)}
    total = _ratio(sum(lost for lost, _ in squares), sum(whole for _, whole in squares))
    return {"rank": job.recipe.output.rank, "relative_error": total, "tensors": errors}


def adapter_files(job: Job, file: OutputFile) -> dict[str, bytes]:
    """Return adapter_config.json, as PEFT reads it, by its name."""
    rank = job.recipe.output.rank
    shapes = {t.name: t.shape for t in file.tensors if ".lora_A." in t.name}
    modules = {
        name.removeprefix(ADAPTER_PREFIX).removesuffix(".lora_A.weight"): shape[0]
        for name, shape in sorted(shapes.items())
    }
    smaller = {module: own for module, own in modules.items() if own != rank}
    document = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": _base_name(job),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "target_modules": list(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    return {ADAPTER_CONFIG: encoded(document)}


def error_warnings(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a warning if the adapter is visibly not the merge."""
    if found["relative_error"] <= _VISIBLE:
        return []
    worst = max(found["tensors"], key=lambda name: found["tensors"][name])
    message = (
        f"Rank {found['rank']} does not hold the merge: the relative error of its change of the "
        f"base is {found['relative_error']:.3g} in all, and {found['tensors'][worst]:.3g} in "
        f"{worst}. Choose a larger output.rank."
    )
    return [{"code": "adapter_error", "message": message}]


def _base_name(job: Job) -> str:
    """Return the base's name as the adapters say it, if they agree."""
    assert job.base is not None
    said = {
        one.resolved.adapter.base_model_name_or_path for one in job.experts if one.resolved.adapter
    }
    return (said.pop() if len(said) == 1 else None) or job.base.resolved.name


def _ratio(lost: float, whole: float) -> float:
    return math.sqrt(lost / whole) if whole > 0 else 0.0


def _write(descriptor: int, place: TensorHeader, values: Tensor) -> None:
    view = values.contiguous().view(torch.uint8).numpy().data.cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], place.start + done)
