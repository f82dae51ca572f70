"""Decides whether a merge's matrices go to a GPU: by estimated seconds, not by its presence."""

from __future__ import annotations

from app.planning.plan import Plan, Step

# A core's rate on the plan's operations: boosted_tsv_m, Whisper-large-v3, an AVX-512 Xeon.
_CORE_FLOPS = 1.4e11
# A float64 eigenproblem of this size takes this long on an H100: assumed, 60 to 150 ms.
_SIZE, GPU_EIGH_SECONDS = 1280, 0.1
_UPLOAD_BYTES = 3e9


def prefers_gpu(plan: Plan, experts: int, threads: int, eigh_seconds: float | None = None) -> bool:
    """Return whether the plan's spectral merges are estimated to be faster on a GPU.

    Args:
        plan: the merge's.
        experts: their number.
        threads: the CPU threads that would work instead.
        eigh_seconds: what a float64 eigenproblem of 1280 was measured to take on the GPU.

    """
    spectral = [step for step in plan.steps if step.parameters and step.parameters.spectral]
    on_cpu = sum(step.cost.flops for step in spectral) / (_CORE_FLOPS * threads)
    unit = eigh_seconds or GPU_EIGH_SECONDS
    on_gpu = sum(_gpu_seconds(step, experts, unit) for step in spectral)
    return on_gpu < on_cpu


def _gpu_seconds(step: Step, experts: int, eigh_seconds: float) -> float:
    """Return the time of a matrix: its eigenproblems, which rule, and the upload."""
    assert step.parameters is not None
    problems = 1 if step.parameters.of_sum else experts + 2
    size = min(step.target.shape) / _SIZE
    return problems * eigh_seconds * size**3 + step.cost.bytes_read / _UPLOAD_BYTES
