"""Runs a plan: adopts what is finished, merges the rest in parallel, writes the artifact."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import torch

from app.contract.errors import IncompatibleCheckpointError, OutOfMemoryError
from app.contract.recipe import Recipe
from app.planning.plan import Plan, Step, Treatment
from app.sources.compatibility import CheckedTensors
from app.sources.fetch import LocalCheckpoint
from app.storage.artifacts import storage_error
from worker.merging.engine.allocation import memory_kept
from worker.merging.engine.blocks import Blocks, Inputs
from worker.merging.engine.companions import write_companions
from worker.merging.engine.crew import Crew
from worker.merging.engine.groups import STRETCH_ENTRIES, Task, groups_of, structure_of
from worker.merging.engine.journal import Entry
from worker.merging.engine.reading import TensorReader
from worker.merging.engine.steps import copy_stretch, merge_stretch, survey_stretch
from worker.merging.engine.writing import OutputWriter
from worker.merging.linalg.inner_products import Doubles, described, symmetric

# What torch's CPU allocator says, on Linux and elsewhere.
_ALLOCATION_FAILED = re.compile(r"can't allocate memory|not enough memory", re.IGNORECASE)
# What small tensors may take beside the largest one.
_SPARE_BYTES = 2**27


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """The run was told to stop (cancelled, or its worker goes away)."""


@dataclass(frozen=True)
class Job:
    """A merge with everything local: what to do, from what, where, and on what."""

    recipe: Recipe
    plan: Plan
    checked: CheckedTensors
    base: LocalCheckpoint | None
    experts: tuple[LocalCheckpoint, ...]
    labels: tuple[str, ...]
    folder: Path
    previous: tuple[Path, ...] = ()
    device: str = "cpu"
    threads: int = 1
    memory_bytes: int | None = None
    point: str = ""
    """Which of a sweep's merges it is, for messages."""

    @property
    def all(self) -> tuple[LocalCheckpoint, ...]:
        """The base, if there is one, and the experts, as `labels` names them."""
        return (self.base, *self.experts) if self.base else self.experts


@dataclass
class Outcome:
    """The finished folder, what the methods had to say, and how much was taken over."""

    folder: Path
    warnings: list[dict[str, str]] = field(default_factory=list)
    adopted_tensors: int = 0


@dataclass
class Observer:
    """What the run tells as it goes on, and how it is told to stop."""

    progress: Callable[[int, int], None] = lambda done, total: None
    stopping: Event = field(default_factory=Event)

    def check(self) -> None:
        """Raise Interrupted if the run is to stop."""
        if self.stopping.is_set():
            raise Interrupted

    def part(self, number: int, parts: int) -> Observer:
        """Return the observer of one of several equal parts that are run one after the other."""

        def progress(done: int, total: int) -> None:
            self.progress(number * total + done, parts * total)

        return Observer(progress, self.stopping)


def run(job: Job, observer: Observer | None = None) -> Outcome:
    """Merge every tensor of the plan and return the finished folder under `job.folder`.

    What `job.previous` attempts finished is taken over. Raises Interrupted when told to stop, and
    AfluenteError for what a person can act on; finished tensors stay for a later attempt.
    """
    (outcome,) = run_all((job,), observer)
    return outcome


def run_all(jobs: Sequence[Job], observer: Observer | None = None) -> list[Outcome]:
    """Run merges of the same inputs at once, each input read once; return their outcomes.

    They may differ in the parameters of their methods, in nothing else but their folders. Each is
    what `run` makes of it alone, to the byte. Raises what `run` raises, for the first that fails.
    """
    observer = observer or Observer()
    together: dict[Hashable, list[int]] = {}
    for number, job in enumerate(jobs):
        together.setdefault(structure_of(job.plan), []).append(number)
    outcomes: dict[int, Outcome] = {}
    for before, numbers in enumerate(together.values()):
        alike = [jobs[number] for number in numbers]
        part = observer.part(before, len(together))
        outcomes.update(zip(numbers, _run_safely(alike, part), strict=True))
    return [outcomes[number] for number in range(len(jobs))]


def _run_safely(jobs: Sequence[Job], observer: Observer) -> list[Outcome]:
    job = jobs[0]
    try:
        with memory_kept():
            return _run(jobs, observer)
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


def _run(jobs: Sequence[Job], observer: Observer) -> list[Outcome]:
    job = jobs[0]
    with ExitStack() as stack:
        readers = [
            stack.enter_context(TensorReader(label, local.resolved.tensors, local.open))
            for label, local in zip(job.labels, job.all, strict=True)
        ]
        _check_tied_copies(job, readers)
        writers = []
        for each in jobs:
            writers.append(OutputWriter(each.folder, each.plan.files, _origin(each)))
            stack.callback(writers[-1].close)
        inputs = Inputs(
            base=readers[0] if job.base else None,
            experts=tuple(readers[1:] if job.base else readers),
            expert_digests=tuple(local.sha256 for local in job.experts),
            weights=job.recipe.weights,
            seed=job.recipe.seed,
            device=torch.device(job.device),
            points=tuple(job.point for job in jobs),
        )
        entries, adopted = _merge_all(jobs, inputs, writers, observer)
    observer.check()
    for local in job.all:
        local.verify_unchanged()
    outcomes = []
    for each, writer, found in zip(jobs, writers, entries, strict=True):
        warnings = _summed_up(each.plan.steps, found)
        write_companions(each, writer.folder, _diagnostics(each.plan.steps, found, warnings))
        outcomes.append(Outcome(writer.folder, warnings, adopted))
    return outcomes


def _merge_all(
    jobs: Sequence[Job], inputs: Inputs, writers: Sequence[OutputWriter], observer: Observer
) -> tuple[list[list[Entry]], int]:
    """Return for every job an entry for every stretch, and how many tensors were taken over."""
    job = jobs[0]
    groups = groups_of([job.plan for job in jobs], inputs)
    wanted = {stretch.key for group in groups for stretch in group.stretches}
    entries = [
        writer.adopt(job.previous, wanted) for job, writer in zip(jobs, writers, strict=True)
    ]
    done = set.intersection(*({entry.key for entry in found} for found in entries))
    entries = [[entry for entry in found if entry.key in done] for found in entries]
    left = Counter(name for name, _, _ in wanted - done)
    total = len(job.plan.steps)
    adopted = total - len(left)
    observer.progress(adopted, total)
    lock = Lock()

    def check() -> None:
        observer.check()
        if crew.halted:
            raise Interrupted

    def work(task: Task) -> Sequence[Task]:
        check()
        merged = _worked_through(task, inputs, writers, check)
        if isinstance(merged, bool):
            return task.group.surveyed(task, merged)
        merged = [task.group.describe(number, entry) for number, entry in enumerate(merged)]
        for writer, entry in zip(writers, merged, strict=True):
            writer.finished(entry)
        with lock:
            for found, entry in zip(entries, merged, strict=True):
                found.append(entry)
            name = task.stretch.step.name
            left[name] -= 1
            if left[name] == 0:
                del left[name]
                observer.progress(total - len(left), total)
        return ()

    crew = Crew(groups, done, _allowance(job), work)
    crew.run(job.threads)
    return entries, adopted


def _worked_through(
    task: Task, inputs: Inputs, writers: Sequence[OutputWriter], check: Callable[[], None]
) -> list[Entry] | bool:
    """Return a merged stretch's entries, or whether the surveyed one is equal in all inputs.

    A group that is one stretch goes through all its surveys to its merge at once.
    """
    stretch, group = task.stretch, task.group
    if stretch.step.treatment is Treatment.COPY:
        return copy_stretch(stretch, inputs, writers, check)
    alone = len(group.stretches) == 1
    again = alone and bool(task.surveys)
    blocks = Blocks(stretch.step, inputs, stretch.origin, group.branches, again=again)
    while task.surveys:
        equal = survey_stretch(stretch, blocks, task.surveys, check)
        if not alone:
            return equal
        (task,) = group.surveyed(task, equal)
    return merge_stretch(stretch, blocks, group.branches, writers, check)


def _origin(job: Job) -> dict[str, str]:
    """Return what, besides the recipe and the inputs, decides bytes: only equals are taken over."""
    return {"torch": torch.__version__, "device": torch.device(job.device).type}


def _allowance(job: Job) -> int:
    largest = max((step.cost.memory_bytes for step in job.plan.steps), default=0)
    return max(largest, job.memory_bytes or largest + _SPARE_BYTES)


def _check_tied_copies(job: Job, readers: Sequence[TensorReader]) -> None:
    """Refuse a stored copy of a tied tensor that is not equal to the tensor it is tied to."""
    for copy in job.checked.tied_copies:
        # None is the reference, which is first; the others are counted after it.
        reader = readers[0 if copy.checkpoint is None else copy.checkpoint + 1]
        entries = reader.tensors[copy.name].numel
        for start in range(0, entries, STRETCH_ENTRIES):
            stop = min(start + STRETCH_ENTRIES, entries)
            stored = reader.read_bytes(copy.name, start, stop)
            if not torch.equal(stored, reader.read_bytes(copy.target, start, stop)):
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
    steps: Sequence[Step], entries: Sequence[Entry], warnings: Sequence[dict[str, str]]
) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {step.name: {} for step in steps}
    counts: dict[str, Counter[str]] = {step.name: Counter() for step in steps}
    products: dict[str, Doubles] = {}
    for entry in _in_order(steps, entries):
        found[entry.name].update(entry.diagnostics)
        counts[entry.name].update(entry.counts)
        if entry.inner_products:
            products[entry.name] = products.get(entry.name, 0.0) + np.array(entry.inner_products)
    for name, upper in products.items():
        # A survey's are as good, but not to the last bit: a sweep must tell what its points would.
        found[name] = {**described(symmetric(upper)), **found[name]}
    tensors = {
        step.name: {
            "method": step.assignment.method,
            "treatment": step.treatment.value,
            **found[step.name],
            **({"counts": dict(counts[step.name])} if counts[step.name] else {}),
        }
        for step in steps
    }
    return {"tensors": tensors, "warnings": list(warnings)}


def _out_of_memory(job: Job) -> OutOfMemoryError:
    largest = max(job.plan.steps, key=lambda step: step.cost.memory_bytes)
    return OutOfMemoryError(
        f"Memory ran out. The largest tensor, {largest.name}, needs about "
        f"{largest.cost.memory_bytes / 2**20:,.0f} MiB on top of what the worker has; give it "
        "more, or set AFLUENTE_THREADS=1."
    )


def default_threads() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0))
