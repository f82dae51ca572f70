"""Runs a plan: adopts what is finished, merges the rest in parallel, writes the artifact."""

from __future__ import annotations

import errno
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import numpy as np
import torch

from app.contract.catalogue.method import ScaledParameters
from app.contract.errors import IncompatibleCheckpointError, OutOfMemoryError
from app.planning.cost import STRETCH_ENTRIES
from app.planning.plan import Step
from app.storage.artifacts import storage_error
from worker.merging.engine.adapt import error_warnings, write_adapter
from worker.merging.engine.companions import write_companions
from worker.merging.engine.drive import Task, UnitRun, work_through
from worker.merging.engine.job import Interrupted, Job, Observer, Outcome
from worker.merging.engine.journal import Entry
from worker.merging.engine.read import Inputs, TensorReader
from worker.merging.engine.schedule import Crew, Variant, units_of
from worker.merging.engine.store import ReductionStore
from worker.merging.engine.write import MemoryWriter, OutputWriter, Writer
from worker.merging.linalg.sphere import Doubles, described, symmetric
from worker.merging.memory import memory_kept

# What torch's CPU allocator says, on Linux and elsewhere.
_ALLOCATION_FAILED = re.compile(r"can't allocate memory|not enough memory", re.IGNORECASE)


def run(job: Job, observer: Observer | None = None) -> Outcome:
    """Merge every tensor of the plan and return the finished folder under `job.folder`.

    What `job.previous` attempts finished is taken over. Raises Interrupted when told to stop, and
    AfluenteError for what a person can act on; finished tensors stay for a later attempt.
    """
    (outcome,) = run_all((job,), observer)
    return outcome


def run_all(jobs: Sequence[Job], observer: Observer | None = None) -> list[Outcome]:
    """Run merges of the same inputs together, each input read once; return their outcomes.

    They may differ in their methods, parameters and folders. Each gives the bytes that `run` gives
    for it alone. Raises what `run` raises, for the first that fails.
    """
    observer = observer or Observer()
    with _explained(jobs[0]), ExitStack() as stack:
        writers = []
        for each in jobs:
            writers.append(OutputWriter(each.folder, each.plan.files, _origin(each)))
            stack.callback(writers[-1].close)
        entries, adopted = _run(jobs, writers, observer)
        outcomes = []
        for each, writer, found in zip(jobs, writers, entries, strict=True):
            warnings, adapter = _summed_up(each.plan.steps, found), {}
            if each.plan.adapter is not None:
                made = write_adapter(each, each.plan.adapter, writer.folder, observer.check)
                warnings += error_warnings(made)
                adapter = {"adapter": made}
            diagnostics = _diagnostics(each.plan.steps, found, warnings) | adapter
            write_companions(each, writer.folder, diagnostics)
            outcomes.append(Outcome(writer.folder, warnings, adopted))
        return outcomes


def run_in_memory(
    job: Job, weights: dict[str, torch.Tensor], observer: Observer | None = None
) -> str:
    """Merge into `weights` by name, in the artifact's dtypes; return a digest of all of them.

    Tensors that are there already are overwritten, so that merges of the same models can follow
    each other without new memory. The values are those of the files that `run` writes.
    """
    with _explained(job):
        (entries,), _ = _run(
            (job,), [MemoryWriter(job.plan.steps, weights)], observer or Observer()
        )
    digest = hashlib.sha256()
    for entry in sorted(entries, key=lambda one: one.key):
        digest.update(f"{entry.key} {entry.digest}\n".encode())
    return digest.hexdigest()


@contextmanager
def _explained(job: Job) -> Iterator[None]:
    """Turn errors of the system into those that users see; give back torch's threads."""
    threads = torch.get_num_threads()
    try:
        with memory_kept():
            yield
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise _out_of_memory(job) from error
        raise storage_error(error, job.folder) from error
    except MemoryError as error:
        raise _out_of_memory(job) from error
    except RuntimeError as error:
        # torch's CPU allocator raises a bare RuntimeError; CUDA's has a class of its own.
        if isinstance(error, torch.OutOfMemoryError) or _ALLOCATION_FAILED.search(str(error)):
            raise _out_of_memory(job) from error
        raise
    finally:
        # A merge sets one; a study's trial is decoded next, by the same thread.
        torch.set_num_threads(threads)


def _run(
    jobs: Sequence[Job], writers: Sequence[Writer], observer: Observer
) -> tuple[list[list[Entry]], int]:
    """Merge all jobs' tensors; return their entries, and how many tensors were taken over."""
    job = jobs[0]
    with ExitStack() as stack:
        readers = [
            stack.enter_context(TensorReader(label, local.resolved.tensors, local.open))
            for label, local in zip(job.labels, job.all, strict=True)
        ]
        _check_tied_copies(job, readers)
        inputs = Inputs(
            base=readers[0] if job.base else None,
            experts=tuple(readers[1:] if job.base else readers),
            expert_digests=tuple(local.sha256 for local in job.experts),
            weights=job.recipe.weights,
            seed=job.recipe.seed,
            device=torch.device(job.device),
            statistics=job.statistics,
            added_tokens=job.growth.tokens if job.growth else {},
        )
        entries, adopted = _merge_all(jobs, inputs, writers, observer)
    observer.check()
    for local in job.all:
        local.verify_unchanged()
    return entries, adopted


def _merge_all(
    jobs: Sequence[Job], inputs: Inputs, writers: Sequence[Writer], observer: Observer
) -> tuple[list[list[Entry]], int]:
    """Return for every job an entry for every stretch, and how many tensors were taken over."""
    plans = [job.plan for job in jobs]
    units = units_of(plans, has_base=inputs.base is not None)
    wanted = {stretch.key for unit in units for stretch in unit.stretches}
    entries = [
        writer.adopt(job.previous, wanted) for job, writer in zip(jobs, writers, strict=True)
    ]
    done = set.intersection(*({entry.key for entry in found} for found in entries))
    entries = [[entry for entry in found if entry.key in done] for found in entries]
    left = Counter(
        stretch.step.name for unit in units for stretch in unit.stretches if stretch.key not in done
    )
    total = len(plans[0].steps)
    adopted = total - len(left)
    observer.progress(adopted, total)
    lock = Lock()

    def check() -> None:
        observer.check()
        if crew.halted:
            raise Interrupted

    def do(task: Task) -> Sequence[Task]:
        check()
        following, finished = work_through(task, writers, check)
        for number, entry in finished.items():
            writers[number].finished(entry)
        if finished:
            with lock:
                for number, entry in finished.items():
                    entries[number].append(entry)
                name = task.stretch.step.name
                left[name] -= 1
                if left[name] == 0:
                    del left[name]
                    observer.progress(total - len(left), total)
        return following

    points, store = [job.point for job in jobs], _store_of(jobs[0])
    # Nothing but the crew may hold the units: what they found out is freed as they are finished.
    crew: Crew[Task] = Crew(
        (
            UnitRun(unit, inputs, points, [s for s in unit.stretches if s.key not in done], store)
            for unit in units
        ),
        _working_memory(jobs),
        do,
    )
    crew.run(jobs[0].threads)
    if store:
        store.trim()
    return entries, adopted


def _store_of(job: Job) -> ReductionStore | None:
    """Return where reductions are kept for later merges of the same inputs."""
    if not job.store_folder or not job.store_bytes:
        return None
    digests = (job.base.sha256 if job.base else None, *(local.sha256 for local in job.experts))
    return ReductionStore(job.store_folder, job.store_bytes, digests, origin_of(job.device))


def _origin(job: Job) -> dict[str, str]:
    """Return the origin of a job's bytes: what it gathered on calibration sets is an input too."""
    gathered = {kind: found.sha256 for kind, found in job.statistics.items()}
    return origin_of(job.device) | {str(kind): sha256 for kind, sha256 in gathered.items()}


def origin_of(device: str) -> dict[str, str]:
    """Return what decides bytes besides the recipe and the inputs: only equals are taken over."""
    origin = {"torch": torch.__version__, "device": torch.device(device).type}
    if origin["device"] == "cuda":
        properties = torch.cuda.get_device_properties(device)
        origin |= {
            "gpu": properties.name,
            "multiprocessors": str(properties.multi_processor_count),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
            "tf32": str(torch.backends.cuda.matmul.allow_tf32),
        }
    return origin


def _working_memory(jobs: Sequence[Job]) -> int:
    """Return how much memory tasks may take together: at least what the largest one takes."""
    largest = max((step.cost.memory_bytes for job in jobs for step in job.plan.steps), default=0)
    return max(largest, jobs[0].memory_bytes)


def _check_tied_copies(job: Job, readers: Sequence[TensorReader]) -> None:
    """Refuse a stored copy of a tied tensor that is not equal to the tensor it is tied to."""
    for copy in job.checked.tied_copies:
        # None is the reference, which is first; the others are counted after it.
        reader = readers[0 if copy.checkpoint is None else copy.checkpoint + 1]
        entries = reader.tensors[copy.name].numel
        for start in range(0, entries, STRETCH_ENTRIES):
            stop = min(start + STRETCH_ENTRIES, entries)
            # Of a difference, what its own files hold: the last part.
            stored, target = (
                reader.read_bytes(name, start, stop, part=-1) for name in (copy.name, copy.target)
            )
            if not torch.equal(stored, target):
                raise IncompatibleCheckpointError(
                    f"{reader.label}: {copy.name} is stored and differs from {copy.target}, to "
                    "which config.json ties it; save the checkpoint with tied weights."
                )


def _in_order(steps: Sequence[Step], entries: Sequence[Entry]) -> list[Entry]:
    order = {step.name: number for number, step in enumerate(steps)}
    return sorted(entries, key=lambda entry: (order[entry.name], entry.start))


def _summed_up(steps: Sequence[Step], entries: Sequence[Entry]) -> list[dict[str, str]]:
    """Return the tensors' warnings, one a code, in the plan's order."""
    by_code: dict[str, dict[str, None]] = {}
    for entry in _in_order(steps, entries):
        for warning in entry.warnings:
            by_code.setdefault(warning["code"], {})[warning["message"]] = None
    return [
        {
            "code": code,
            "message": next(iter(messages))
            + (f" (and {len(messages) - 1} more tensors)" if len(messages) > 1 else ""),
        }
        for code, messages in by_code.items()
    ]


def _diagnostics(
    steps: Sequence[Step], entries: Sequence[Entry], warnings: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """Return the content of diagnostics.json: what stretches counted is summed by tensor."""
    found: dict[str, dict[str, Any]] = {step.name: {} for step in steps}
    counts: dict[str, Counter[str]] = {step.name: Counter() for step in steps}
    products: dict[str, Doubles] = {}
    for entry in _in_order(steps, entries):
        found[entry.name].update(entry.diagnostics)
        counts[entry.name].update(entry.counts)
        if entry.inner_products:
            products[entry.name] = products.get(entry.name, 0.0) + np.array(entry.inner_products)
    for name, upper in products.items():
        found[name] = {**described(symmetric(upper)), **found[name]}
    tensors = {
        step.name: {
            "method": step.assignment.method,
            "treatment": step.treatment.value,
            **_scale(step),
            **found[step.name],
            **({"counts": dict(counts[step.name])} if counts[step.name] else {}),
        }
        for step in steps
    }
    return {"tensors": tensors, "warnings": list(warnings)}


def _scale(step: Step) -> dict[str, float]:
    """Return λ where it differs by layer."""
    parameters = step.assignment.parameters
    if not isinstance(parameters, ScaledParameters) or parameters.scaling_coefficient_last is None:
        return {}
    (scale,) = Variant(None, None, {parameters.scales: []}).outputs_at(step.depth)
    return {"scaling_coefficient": scale}


def _out_of_memory(job: Job) -> OutOfMemoryError:
    largest = max(job.plan.steps, key=lambda step: step.cost.memory_bytes)
    return OutOfMemoryError(
        f"Memory ran out. The largest tensor, {largest.name}, needs about "
        f"{largest.cost.memory_bytes / 2**20:,.0f} MiB on top of what the worker has; give it "
        "more, or set AFLUENTE_THREADS=1."
    )
