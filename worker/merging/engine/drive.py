"""Drives a unit: runs its methods' generators, reads for their reductions, then merges."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from app.contract.errors import AfluenteError, IncompatibleCheckpointError
from app.contract.problems import shown
from app.contract.tensors import AddedRows
from app.planning.cost import is_thin
from app.planning.plan import Treatment
from worker.merging import native
from worker.merging.combines import Linear
from worker.merging.engine.journal import Entry
from worker.merging.engine.read import DTYPES, Inputs, TensorBlocks, first_difference
from worker.merging.engine.schedule import Stretch, Unit, Variant
from worker.merging.engine.store import ReductionStore
from worker.merging.engine.write import StretchDigest, Writer, all_finite, rounded, scaled
from worker.merging.linalg.sphere import Doubles, described
from worker.merging.memory import Scratch
from worker.merging.method import Block, Combine, Notes, Reduction, State, Subject
from worker.merging.methods import load
from worker.merging.reductions import InnerProducts

# Entries of all outputs of a combination that are made before they are written.
_RESULT_ENTRIES = 2**22
_RESULTS = Scratch()
Outputs = Iterator[tuple[Sequence[int], int, torch.Tensor]]
"""Numbers of outputs, a position, and the entries there as they are stored. Entries may be
overwritten when the next ones are asked for."""


class Course:
    """A variant on its way through its method: the reductions it asks for, then its combine.

    Attributes:
        asked: the reductions it waits for; none once it has its combine.
        reduced: whether it asked for any.
        described: whether its diagnostics have the norms and cosines.
    """

    def __init__(self, variant: Variant, subject: Subject) -> None:
        self.variant, self.subject = variant, subject
        self.asked: tuple[Reduction, ...] = ()
        self.combine: Combine | None = None
        self.reduced = self.described = False
        if variant.method is None:
            weights = subject.weights
            self.combine = Linear([weight / len(weights) for weight in weights])
            return
        found = load(variant.method)(subject, variant.parameters)
        if isinstance(found, Combine):
            self.combine = found
            return
        self._steps: Generator[Any, Any, Combine] = found
        self._advance(None)

    def resume(self, found: Mapping[Reduction, Any]) -> None:
        """Hand over the finished reductions."""
        if not self.asked:
            return
        self.reduced = True
        for reduction in self.asked:
            if isinstance(reduction, InnerProducts):
                self.described = True
                self.subject.notes.diagnostics.update(described(found[reduction]))
        answers = tuple(found[reduction] for reduction in self.asked)
        self._advance(answers if self._several else answers[0])

    def _advance(self, answer: Any) -> None:
        try:
            asked = self._steps.send(answer)
        except StopIteration as end:
            self.asked, self.combine = (), end.value
            return
        self._several = isinstance(asked, tuple)
        self.asked = asked if self._several else (asked,)


@dataclass(eq=False)
class Task:
    """A stretch to reduce (into `states`, one a reduction), or to merge if there are none."""

    run: UnitRun
    stretch: Stretch
    number: int
    reductions: tuple[Reduction, ...] = ()
    states: tuple[State, ...] = ()
    stored: Mapping[Reduction, Path] | None = None
    """Where all the reductions' results are, if an earlier merge stored them."""

    @property
    def memory_bytes(self) -> int:
        """What it takes, by the plan."""
        return self.stretch.step.cost.memory_bytes


class UnitRun:
    """A unit's state: the reading it is at, then its merge."""

    def __init__(
        self,
        unit: Unit,
        inputs: Inputs,
        points: Sequence[str],
        left: Sequence[Stretch],
        store: ReductionStore | None = None,
    ) -> None:
        """`left` are the stretches that are not finished; `points` name the outputs in errors."""
        self.unit, self.inputs, self.points, self._store = unit, inputs, points, store
        self.flops = sum(step.cost.flops for step in unit.steps)
        self.courses: list[Course] = []
        self.all_equal = True
        self._left = left
        self._waiting: dict[int, tuple[State, ...]] = {}
        self._joined: tuple[State, ...] = ()
        self._next = 0
        self._lock = Lock()

    def start(self) -> Sequence[Task]:
        """Return the first tasks; none if all is finished."""
        if not self._left:
            return ()
        if self.unit.steps[0].treatment in (Treatment.MERGE, Treatment.MEAN):
            for variant in self.unit.variants:
                with self.naming(variant.numbers):
                    self.courses.append(Course(variant, self._subject(variant)))
        return self._tasks()

    def reduced(self, task: Task, equal: bool) -> Sequence[Task]:
        """Take in a reduced stretch; return the tasks that it was the last one missing for."""
        with self._lock:
            self.all_equal &= equal
            self._waiting[task.number] = task.states
            # Joined as soon as the stretches before are: their states need not wait for the last.
            while (states := self._waiting.pop(self._next, None)) is not None:
                if self._next == 0:
                    self._joined = states
                else:
                    for reduction, first, later in zip(
                        task.reductions, self._joined, states, strict=True
                    ):
                        reduction.join(first, later)
                self._next += 1
            if self._next < len(self.unit.stretches):
                return ()
            found = {
                reduction: reduction.finish(state, self.courses[0].subject)
                for reduction, state in zip(task.reductions, self._joined, strict=True)
            }
            self._save(found)
            return self._resume(found)

    def load(self, task: Task) -> Sequence[Task]:
        """Take in what an earlier merge stored instead of reading; return the tasks that follow."""
        assert self._store is not None
        assert task.stored is not None
        loaded = self._store.load(task.stored, self.courses[0].subject)
        if loaded is None:
            return self._reading(task.reductions)
        found, equal = loaded
        self.all_equal &= equal
        return self._resume(found)

    def _resume(self, found: Mapping[Reduction, Any]) -> Sequence[Task]:
        for course in self.courses:
            with self.naming(course.variant.numbers):
                course.resume(found)
        return self._tasks()

    def _save(self, found: Mapping[Reduction, Any]) -> None:
        for reduction, result in found.items():
            if self._store and (path := self._path(reduction)):
                self._store.save(path, reduction, result, equal=self.all_equal)

    def _path(self, reduction: Reduction) -> Path | None:
        if self._store is None:
            return None
        return self._store.path(self.unit, reduction, self.courses[0].subject)

    @contextmanager
    def naming(self, numbers: Sequence[int]) -> Iterator[None]:
        """Let an error say at which points of a sweep it came up: those of these outputs."""
        try:
            yield
        except AfluenteError as error:
            names = [self.points[number] for number in numbers if self.points[number]]
            if not names:
                raise
            more = f" and {len(names) - 1} more points" if len(names) > 1 else ""
            message = f"At {names[0]}{more}: {error.message}"
            raise type(error)(message, param=error.param, problems=error.problems) from error

    def _tasks(self) -> list[Task]:
        """Return the tasks of the next reading: equal reductions of several variants are one."""
        wanted = tuple(dict.fromkeys(r for course in self.courses for r in course.asked))
        if not wanted:
            return [Task(self, stretch, number) for number, stretch in enumerate(self._left)]
        paths = {reduction: self._path(reduction) for reduction in wanted}
        there = {reduction: path for reduction, path in paths.items() if path and path.exists()}
        if len(there) == len(wanted):
            return [Task(self, self.unit.stretches[0], 0, wanted, (), there)]
        return self._reading(wanted)

    def _reading(self, wanted: tuple[Reduction, ...]) -> list[Task]:
        self._next = 0
        return [
            Task(self, stretch, number, wanted, tuple({} for _ in wanted))
            for number, stretch in enumerate(self.unit.stretches)
        ]

    def _subject(self, variant: Variant) -> Subject:
        step, reading, inputs = self.unit.steps[0], self.unit.reading, self.inputs
        shape = step.target.shape
        if len(self.unit.steps) > 1:
            shape = (sum(step.target.numel for step in self.unit.steps),)
        elif step.cut.transposed:
            shape = shape[::-1]

        kind = variant.parameters.statistic if variant.parameters else None
        gathered = inputs.statistics.get(kind) if kind else None

        def seed(expert: int) -> int:
            source = f"{inputs.seed}\n{step.name}\n{inputs.expert_digests[expert]}"
            return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "little")

        def factors(expert: int) -> tuple[torch.Tensor, torch.Tensor]:
            left, right = inputs.experts[expert].factors(step.name)
            return (right.mT, left.mT) if step.cut.transposed else (left, right)

        thin: dict[int, int] = {}
        spectral = step.parameters is not None and step.parameters.spectral
        if spectral and reading.subtracts and inputs.device.type == "cpu":
            headers = [expert.tensors[step.name] for expert in inputs.experts]
            ranks = {n: one.change_rank for n, one in enumerate(headers) if is_thin(one)}
            thin = {number: rank for number, rank in ranks.items() if rank is not None}
        return Subject(
            name=step.name,
            shape=shape,
            thin=thin,
            factors=factors,
            weights=reading.weights(inputs),
            unit_roundoff=inputs.unit_roundoff(step.name, reading),
            transposed=step.cut.transposed,
            statistics=gathered.of(step.name) if gathered else None,
            seed=seed,
        )


def work_through(
    task: Task, writers: Sequence[Writer], check: Callable[[], None]
) -> tuple[Sequence[Task], Mapping[int, Entry]]:
    """Do a task; return the tasks that follow, and the entries of outputs that it finished.

    `check` raises to interrupt. A unit of one stretch goes through all its readings to its merge
    at once, so that it can stay in memory.
    """
    run, stretch = task.run, task.stretch
    if stretch.step.treatment is Treatment.COPY:
        return (), _copy(task, writers, check)
    place = stretch.start, stretch.stop, stretch.origin
    blocks = TensorBlocks(stretch.step, run.inputs, run.unit.reading, *place)
    while task.reductions:
        if task.stored:
            following = run.load(task)
        else:
            following = run.reduced(task, _reduce(task, blocks, check))
        if len(run.unit.stretches) > 1:
            return following, {}
        (task,) = following
    return (), _Merger(task, blocks).merge(writers, check)


def _reduce(task: Task, blocks: TensorBlocks, check: Callable[[], None]) -> bool:
    """Add a stretch to the states; return whether all inputs are equal there."""
    equal, subject = True, task.run.courses[0].subject
    products = any(reduction.products_alone for reduction in task.reductions)
    alone = all(reduction.products_alone for reduction in task.reductions)
    for start, stop in blocks.within(task.stretch.start, task.stretch.stop):
        check()
        if alone:
            block = blocks.products(start, stop)
        else:
            block = blocks.read(start, stop, products=products)
        equal &= block.equal
        for reduction, state in zip(task.reductions, task.states, strict=True):
            reduction.add(state, block, subject)
    return equal


def _copy(task: Task, writers: Sequence[Writer], check: Callable[[], None]) -> Mapping[int, Entry]:
    """Copy a tensor that is not floating point, which all inputs must agree on."""
    stretch, inputs, name = task.stretch, task.run.inputs, task.stretch.step.name
    numbers = [number for variant in task.run.unit.variants for number in variant.numbers]
    digests = {number: StretchDigest() for number in numbers}
    readers = [*([inputs.base] if inputs.base else []), *inputs.experts]
    for start in range(stretch.start, stretch.stop, _RESULT_ENTRIES):
        check()
        stop = min(start + _RESULT_ENTRIES, stretch.stop)
        raw, other = first_difference(name, readers, start, stop)
        if other is not None:
            raise IncompatibleCheckpointError(
                f"{other.label}: {name} is not floating point and differs from that of "
                f"{readers[0].label}; such tensors must be equal in all inputs."
            )
        values = raw.view(DTYPES[stretch.step.target.dtype])
        for number in numbers:
            writers[number].write(name, start, values, digests[number])
    return {number: Entry(*stretch.key, digests[number].hexdigest()) for number in numbers}


class _Merger:
    """Merges one stretch for all outputs of its unit: base, λ, equal inputs and rounding."""

    def __init__(self, task: Task, blocks: TensorBlocks) -> None:
        self._stretch, self._run, self._blocks = task.stretch, task.run, blocks
        self._step, self._subtracts = task.stretch.step, task.run.unit.reading.subtracts
        self._notes = [Notes() for _ in task.run.courses]
        self._outputs = {
            course: course.variant.outputs_at(self._step.depth) for course in task.run.courses
        }
        wanted = self._subtracts and not all(c.described for c in task.run.courses)
        count = len(task.run.inputs.experts)
        self._products: Doubles | None = np.zeros((count, count)) if wanted else None

    def merge(self, writers: Sequence[Writer], check: Callable[[], None]) -> Mapping[int, Entry]:
        """Write the stretch of every output; return their entries."""
        numbers = [number for variant in self._run.unit.variants for number in variant.numbers]
        digests = {number: StretchDigest() for number in numbers}
        for start, stop in self._blocks.within(self._stretch.start, self._stretch.stop):
            check()
            for some, place, values in self._merged(start, stop):
                check()
                for number in some:
                    writers[number].write(self._step.name, place, values, digests[number])
        if self._run.unit.reading.keep:
            return {n: Entry(*self._stretch.key, digests[n].hexdigest()) for n in numbers}
        return {
            number: self._entry(course, notes, digests[number].hexdigest())
            for course, notes in zip(self._run.courses, self._notes, strict=True)
            for number in course.variant.numbers
        }

    def _entry(self, course: Course, notes: Notes, digest: str) -> Entry:
        said = course.subject.notes
        first = (self._step, self._stretch.start) == (self._run.unit.steps[0], 0)
        warnings = [*(said.warnings if first else ()), *notes.warnings]
        products = [] if self._products is None or course.described else self._products.tolist()
        return Entry(
            *self._stretch.key,
            digest,
            {**said.diagnostics, **notes.diagnostics},
            tuple({"code": code, "message": message} for code, message in warnings),
            notes.counts,
            products,
        )

    def _merged(self, start: int, stop: int) -> Outputs:
        """Yield a block of every output."""
        if self._run.unit.reading.keep:
            yield from self._kept(start, stop)
            return
        courses = self._run.courses
        first = courses[0].combine
        if len(courses) == 1 and isinstance(first, Linear) and not self._blocks.is_read(start):
            yield from self._combined(courses[0], first, start, stop, None)
            return
        block = self._blocks.read(start, stop, products=self._products is not None)
        if self._products is not None:
            self._products += block.products
        for course, notes in zip(courses, self._notes, strict=True):
            if isinstance(course.combine, Linear) and block.rows is not None:
                yield from self._combined(course, course.combine, start, stop, block.rows)
            else:
                yield from self._block(course, notes, block, start)

    def _kept(self, start: int, stop: int) -> Outputs:
        numbers = [number for variant in self._run.unit.variants for number in variant.numbers]
        rows = self._blocks.stored(start, stop)
        values = rows[0]
        if not all_finite(values):
            self._blocks.refuse_non_finite(start, stop)
        if self._step.added is not None:
            self._refuse_unlike(self._step.added, rows, start)
        yield numbers, start, rounded(self._step, values)

    def _refuse_unlike(self, added: AddedRows, rows: torch.Tensor, start: int) -> None:
        """Raise if experts have other entries in the rows that they share."""
        inputs = self._run.inputs
        readers = [inputs.experts[number] for number in added.holders]
        for reader, row in zip(readers[1:], rows[1:], strict=True):
            unlike = (row != rows[0]).nonzero()
            if len(unlike):
                width = self._step.target.numel // self._step.target.shape[0]
                token = added.start + (start + int(unlike[0])) // width
                name = shown(inputs.added_tokens.get(token, "without a name"))
                raise IncompatibleCheckpointError(
                    f"The token {token} ({name}), which the base does not have, has one row of "
                    f"{added.tensor} in {readers[0].label} and another in {reader.label}. Merge "
                    "only one of them, or give both the same row."
                )

    def _block(self, course: Course, notes: Notes, block: Block, start: int) -> Outputs:
        """Yield a variant's outputs of a block: the base or the inputs themselves where equal."""
        assert block.rows is not None
        assert course.combine is not None
        copied = block.equal and self._copies_equal_inputs(course)
        scales = []
        for scale, numbers in self._outputs[course].items():
            if copied or (self._subtracts and scale == 0.0):
                with self._run.naming(numbers):
                    values = rounded(self._step, block.rows[0])
                yield numbers, start, values
            else:
                scales.append(scale)
        if not scales:
            return
        with self._run.naming(course.variant.numbers):
            merged = course.combine(block, notes)
        merged = (merged.mT if self._step.cut.transposed else merged).reshape(-1)
        if self._subtracts:
            for place, some, rows, finite in scaled(block.rows[0], merged, scales):
                yield from self._rounded(course, some, rows, finite, start + place)
        else:
            yield from self._rounded(course, [1.0], merged[None], False, start)

    def _combined(
        self,
        course: Course,
        linear: Linear,
        start: int,
        stop: int,
        rows: torch.Tensor | None,
    ) -> Outputs:
        """Yield a linear combination: of the rows of a block, or of what is read on the way."""
        scales = list(self._outputs[course]) if self._subtracts else [1.0]
        what = native.Combination(
            linear.coefficients,
            scales,
            subtracted=self._subtracts,
            copy_equal=not self._subtracts and self._copies_equal_inputs(course),
        )
        width = max(1, _RESULT_ENTRIES // len(scales) // native.ALIGNED) * native.ALIGNED
        for first in range(start, stop, width):
            last = min(first + width, stop)
            results = _RESULTS.take(len(scales) * (last - first)).view(len(scales), -1)
            if rows is None:
                finite = self._blocks.combine(first, last, what, results, self._products)
            else:
                finite = native.combine_rows(rows, first - start, what, results)
            yield from self._rounded(course, scales, results, finite, first)

    def _rounded(
        self,
        course: Course,
        scales: Sequence[float],
        rows: torch.Tensor,
        finite: bool,
        place: int,
    ) -> Outputs:
        """Yield outputs, a row for each λ, as they are stored."""
        outputs = self._outputs[course]
        for scale, row in zip(scales, rows, strict=True):
            numbers = outputs[scale] if self._subtracts else course.variant.numbers
            with self._run.naming(numbers):
                values = rounded(self._step, row, finite=finite)
            yield numbers, place, values

    def _copies_equal_inputs(self, course: Course) -> bool:
        """Return whether equal inputs are the answer: no task vector, or an average.

        An average by coefficients that depend on the whole tensor is a copy if all of it is equal;
        if only a block is, the coefficients need not add up to 1.
        """
        if self._subtracts:
            return True
        if course.reduced:
            return self._run.all_equal
        return bool(getattr(course.variant.parameters, "normalize", True))
