"""What can be worked on separately, and the threads that do it as far as memory allows.

A unit is a tensor with all its merges that can share one reading; where a method ranks the whole
model, all the tensors that it merges. Large tensors are cut into stretches that run in parallel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Condition, Thread
from typing import Generic, Protocol, TypeVar

import torch

from app.contract.catalogue import MethodParameters
from app.contract.catalogue.method import ScaledParameters
from app.planning import cost
from app.planning.plan import Assignment, Plan, Step, Treatment
from worker.merging.engine.read import Reading

Scales = tuple[float, float]
"""λ in the first and in the last layer."""
_PLAIN = {"scaling_coefficient": 1.0, "scaling_coefficient_last": None}


@dataclass(frozen=True)
class Stretch:
    """Entries `start` to `stop` of a step's tensor, worked through by one thread.

    `origin` is where the tensor begins among those that are reduced together.
    """

    step: Step
    start: int
    stop: int
    origin: int = 0

    @property
    def key(self) -> tuple[str, int, int]:
        """What the journal knows it by."""
        return self.step.name, self.start, self.stop


@dataclass
class Variant:
    """The merges of a unit that differ in λ alone: reduced and combined once.

    Attributes:
        method: None where the tensor is kept, copied, or gets the mean.
        outputs: λ, in the first and in the last layer -> the numbers of the outputs that have it.
    """

    method: str | None
    parameters: MethodParameters | None
    outputs: dict[Scales, list[int]] = field(default_factory=dict)

    def outputs_at(self, depth: float) -> dict[float, list[int]]:
        """Return the numbers of the outputs by λ, for a tensor of this depth."""
        found: dict[float, list[int]] = {}
        for (first, last), numbers in self.outputs.items():
            scale = first if first == last else (1 - depth) * first + depth * last
            found.setdefault(scale, []).extend(numbers)
        return found

    @property
    def numbers(self) -> list[int]:
        """The numbers of all its outputs."""
        return [number for numbers in self.outputs.values() for number in numbers]


@dataclass
class Unit:
    """Tensors that are reduced together, read in one way, with the merges that are made of them."""

    steps: Sequence[Step]
    reading: Reading
    stretches: Sequence[Stretch]
    variants: list[Variant]


def units_of(plans: Sequence[Plan], *, has_base: bool) -> list[Unit]:
    """Return the units of several merges of the same inputs, a plan for each output.

    Merges of one tensor share a unit if they read it in the same way: then sums over it are made
    in the same order as for each merge alone.
    """
    units: dict[Hashable, Unit] = {}
    variants: dict[Hashable, Variant] = {}
    kinds: dict[tuple[int, Treatment], tuple[Reading, Hashable, Variant, Scales]] = {}
    for number, plan in enumerate(plans):
        for steps in _together(plan):
            step = steps[0]
            # A plan's steps share their assignments, and comparing parameters takes time.
            seen = (id(step.assignment), step.treatment)
            if seen not in kinds:
                kinds[seen] = (Reading.of(step, has_base=has_base), *_variant_of(step))
            reading, same, kind, scale = kinds[seen]
            place = (tuple(step.name for step in steps), step.treatment, step.cut, reading)
            if place not in units:
                units[place] = Unit(steps, reading, _stretches(steps), [])
            if (place, same) not in variants:
                variants[place, same] = Variant(kind.method, kind.parameters)
                units[place].variants.append(variants[place, same])
            variants[place, same].outputs.setdefault(scale, []).append(number)
    return list(units.values())


def _together(plan: Plan) -> Iterator[Sequence[Step]]:
    """Yield the steps that are reduced together, in the plan's order."""
    whole: dict[int, list[Step]] = {}
    for step in plan.steps:
        if step.whole_model:
            whole.setdefault(id(step.assignment), []).append(step)
    for step in plan.steps:
        if not step.whole_model:
            yield (step,)
        elif (steps := whole[id(step.assignment)])[0] is step:
            yield steps


def _variant_of(step: Step) -> tuple[Hashable, Variant, Scales]:
    """Return what is equal for merges that differ in λ alone, their variant, and λ."""
    assignment: Assignment = step.assignment
    parameters = assignment.parameters
    scales = parameters.scales if isinstance(parameters, ScaledParameters) else (1.0, 1.0)
    if step.parameters is None:
        return (step.treatment,), Variant(None, None), scales
    parameters = step.parameters
    if isinstance(parameters, ScaledParameters):
        parameters = parameters.model_copy(update=_PLAIN)
    return parameters, Variant(assignment.method, parameters), scales


def _stretches(steps: Sequence[Step]) -> list[Stretch]:
    """Return the stretches of tensors that are reduced together."""
    stretches, origin = [], 0
    for step in steps:
        entries, piece = step.target.numel, step.cut.piece
        if piece >= entries or entries <= cost.STRETCH_ENTRIES:
            edges = [0, entries]
        else:
            size = piece * max(1, cost.STRETCH_ENTRIES // piece)
            edges = [*range(0, entries, size), entries]
        stretches += [Stretch(step, a, b, origin) for a, b in pairwise(edges)]
        origin += entries
    return stretches


class Sized(Protocol):
    """A task: something that one thread does."""

    @property
    def memory_bytes(self) -> int:
        """How much working memory it takes."""
        ...


T = TypeVar("T", bound=Sized)
T_co = TypeVar("T_co", bound=Sized, covariant=True)


class Work(Protocol[T_co]):
    """Tasks that follow from each other."""

    flops: int

    def start(self) -> Sequence[T_co]:
        """Return the first tasks."""
        ...


class Crew(Generic[T]):
    """Threads that take tasks, those of the costliest work first, until none is left or one fails.

    What follows from a task is done before other work starts, so that its memory is freed. Each
    thread takes its next task itself: handing it one would cost two changes of threads.
    """

    def __init__(
        self,
        work: Iterable[Work[T]],
        memory_bytes: int,
        do: Callable[[T], Sequence[T]],
    ) -> None:
        """`do` does a task and returns those that follow from it."""
        self._waiting = deque(sorted(work, key=lambda one: one.flops, reverse=True))
        self._do = do
        self._ready: deque[T] = deque()
        self._free, self._busy = memory_bytes, 0
        self._failures: list[BaseException] = []
        self._changed = Condition()

    @property
    def halted(self) -> bool:
        """Whether a task has failed: then the others are to stop."""
        return bool(self._failures)

    def run(self, threads: int) -> None:
        """Work with that many threads; raise what the first task that failed raised."""
        # A tensor is merged on one thread, and tensors in parallel: then the bytes do not depend on
        # how many cores there are. torch keeps that number per thread.
        torch.set_num_threads(1)
        crew = [Thread(target=self._loop, name=f"merge-{n}") for n in range(threads)]
        try:
            for thread in crew:
                thread.start()
            for thread in crew:
                thread.join()
        except BaseException as error:
            self._fail(error)
            _wait_for(thread for thread in crew if thread.ident is not None)
            raise
        if self._failures:
            raise self._failures[0]

    def _loop(self) -> None:
        torch.set_num_threads(1)
        try:
            while (task := self._take()) is not None:
                following: Sequence[T] = ()
                try:
                    following = self._do(task)
                finally:
                    self._give_back(task, following)
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._fail(error)

    def _take(self) -> T | None:
        """Return the next task, once there is memory for it; None when all is done or over."""
        with self._changed:
            while not self._failures:
                while not self._ready and self._waiting:
                    self._ready.extend(self._waiting.popleft().start())
                if self._ready and (not self._busy or self._ready[0].memory_bytes <= self._free):
                    self._busy += 1
                    self._free -= self._ready[0].memory_bytes
                    return self._ready.popleft()
                if not self._ready and not self._busy:
                    break
                self._changed.wait()
            self._changed.notify_all()
            return None

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failures.append(error)
            self._changed.notify_all()

    def _give_back(self, task: T, following: Sequence[T]) -> None:
        with self._changed:
            self._busy -= 1
            self._free += task.memory_bytes
            self._ready.extendleft(reversed(following))
            self._changed.notify_all()


def _wait_for(threads: Iterable[Thread]) -> None:
    """Wait until all have ended, interrupted or not: they use files that are closed next."""
    for thread in threads:
        while thread.is_alive():
            with suppress(KeyboardInterrupt):
                thread.join()
