"""Tensors that are surveyed together, and what of them can be worked on at a time.

Most groups are one tensor; where a method ranks the whole model, all the tensors it merges are one
group. A survey's stretches run in parallel and are joined in order; then comes the next survey, or
the merge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from app.planning.plan import Assignment, Plan, Step, Treatment
from worker.merging.engine.blocks import Inputs, Known
from worker.merging.engine.journal import Entry
from worker.merging.engine.steps import Stretch, stretches_of
from worker.merging.interface import About, Method, Survey
from worker.merging.methods import load

# Tensors that are merged by blocks are shared out in stretches of this many entries. Part of the
# artifact's journal, and of the order in which surveys are summed: not of the number of threads.
STRETCH_ENTRIES = 2**22


@dataclass(frozen=True)
class Task:
    """One stretch to survey (into `survey`), or to merge if that is None."""

    group: Group
    stretch: Stretch
    number: int
    survey: Survey | None


class Group:
    """The state of one group: which survey it is at, and what is known when all are made."""

    def __init__(self, steps: Sequence[Step], stretches: Sequence[Stretch], inputs: Inputs) -> None:
        self.steps, self.stretches = steps, stretches
        self.known = Known()
        self._method = _method(steps[0])
        self._parameters = steps[0].assignment.parameters
        shape = steps[0].target.shape
        if len(steps) > 1:
            shape = (sum(prod(step.target.shape) for step in steps),)
        self.about = About(steps[0].name, shape, inputs.merged_weights(steps[0]))
        self._finished: Survey | None = None
        self._surveys: dict[int, Survey] = {}
        self._all_equal = True

    def start(self, done: Iterable[tuple[str, int, int]]) -> list[Task]:
        """Return the first tasks, none for what is done."""
        finished = set(done)
        self._left = [s for s in self.stretches if s.key not in finished]
        if not self._left:
            return []
        if self._method is None or self._method.survey is None:
            return self._merges()
        return self._next()

    def surveyed(self, task: Task, equal: bool) -> list[Task]:
        """Note that a stretch is surveyed; return what can be done now that could not before."""
        self._all_equal &= equal
        if task.survey is not None:
            self._surveys[task.number] = task.survey
        if len(self._surveys) < len(self.stretches):
            return []
        first, *others = (self._surveys[number] for number in range(len(self.stretches)))
        for later in others:
            first.join(later)
        self._finished = first
        self._surveys = {}
        return self._next()

    def describe(self, entry: Entry) -> Entry:
        """Return a merged stretch's entry with what the surveys say; warnings are said once."""
        said = [{"code": w.code, "message": w.message} for w in self.about.warnings]
        first = (entry.name, entry.start) == (self.steps[0].name, 0)
        return replace(
            entry,
            diagnostics={**self.about.diagnostics, **entry.diagnostics},
            warnings=(*(said if first else ()), *entry.warnings),
        )

    def _next(self) -> list[Task]:
        """Return the tasks of the next survey, one of its own for each stretch, or the merges."""
        assert self._method is not None
        assert self._method.survey is not None
        ask, before = self._method.survey, self._finished
        answer = ask(self.about, self._parameters, before)
        if not isinstance(answer, Survey):
            self.known = Known((answer,), before is not None, self._all_equal)
            self._finished = None
            return self._merges()
        surveys = [answer]
        surveys += [ask(self.about, self._parameters, before) for _ in self.stretches[1:]]
        return [
            Task(self, stretch, number, survey)
            for number, (stretch, survey) in enumerate(zip(self.stretches, surveys, strict=True))
        ]

    def _merges(self) -> list[Task]:
        return [Task(self, stretch, number, None) for number, stretch in enumerate(self._left)]


def groups_of(plan: Plan, inputs: Inputs) -> list[Group]:
    """Return the plan's groups, in its order; one of several tensors is where its first is."""
    members: dict[object, list[Step]] = {}
    for step in plan.steps:
        members.setdefault(_identity(step), []).append(step)
    groups = []
    for steps in members.values():
        stretches, origin = [], 0
        for step in steps:
            stretches += stretches_of(step, STRETCH_ENTRIES, origin)
            origin += step.target.numel
        groups.append(Group(steps, stretches, inputs))
    return groups


def _identity(step: Step) -> object:
    """Return what is the same for steps of one group."""
    parameters = step.assignment.parameters
    if step.treatment is Treatment.MERGE and parameters is not None and parameters.whole_model:
        return _Whole(step.assignment)
    return step.name


@dataclass(frozen=True)
class _Whole:
    assignment: Assignment


def _method(step: Step) -> Method | None:
    return load(step.assignment.method) if step.treatment is Treatment.MERGE else None
