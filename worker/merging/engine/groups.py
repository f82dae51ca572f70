"""Tensors that are surveyed together, and what of them can be worked on at a time.

Most groups are one tensor; where a method ranks the whole model, all the tensors it merges are one
group. A survey's stretches run in parallel and are joined in order; then comes the next survey, or
the merge.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from threading import Lock
from typing import Any

from app.planning.plan import Assignment, Plan, Step, Treatment
from worker.merging.engine.blocks import Inputs, piece_of
from worker.merging.engine.branches import Branch, Branching, Known, naming
from worker.merging.engine.journal import Entry
from worker.merging.engine.steps import Stretch, stretches_of
from worker.merging.interface import About, Method, NextSurvey, Survey
from worker.merging.methods import load

# Tensors that are merged by blocks are shared out in stretches of this many entries. Part of the
# artifact's journal, and of the order in which surveys are summed: not of the number of threads.
STRETCH_ENTRIES = 2**22


@dataclass(frozen=True)
class Task:
    """One stretch to survey (into `surveys`), or to merge if there are none."""

    group: Group
    stretch: Stretch
    number: int
    surveys: tuple[Survey, ...]


class Group:
    """The state of one group: which surveys it is at, and what is known when all are made.

    `branches` are what the outputs' merges of its tensors have in common.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        stretches: Sequence[Stretch],
        inputs: Inputs,
        branches: list[Branch],
    ) -> None:
        self.steps, self.stretches = steps, stretches
        self.branches = branches
        self._points = inputs.points
        self._method = _method(steps[0])
        shape = steps[0].target.shape
        if len(steps) > 1:
            shape = (sum(prod(step.target.shape) for step in steps),)
        weights = inputs.merged_weights(steps[0])
        self._inquiries = [
            Inquiry(branch, About(steps[0].name, shape, weights)) for branch in self.branches
        ]
        self._asking: list[list[Inquiry]] = []
        self._surveys: dict[int, tuple[Survey, ...]] = {}
        self._first: tuple[Survey, ...] = ()
        self._joined = 0
        self._all_equal = True
        self._lock = Lock()

    def start(self, done: Iterable[tuple[str, int, int]]) -> list[Task]:
        """Return the first tasks, none for what is done."""
        finished = set(done)
        self._left = [s for s in self.stretches if s.key not in finished]
        if not self._left:
            return []
        if self._method is None or self._method.survey is None:
            return self._merges()
        return self._next(self._method.survey, self._inquiries)

    def surveyed(self, task: Task, equal: bool) -> list[Task]:
        """Note that a stretch is surveyed; return what can be done now that could not before."""
        with self._lock:
            return self._surveyed(task, equal)

    def _surveyed(self, task: Task, equal: bool) -> list[Task]:
        self._all_equal &= equal
        self._surveys[task.number] = task.surveys
        # Joined as soon as those before them are: what they hold need not wait for the last.
        while (later := self._surveys.pop(self._joined, None)) is not None:
            for first, one in zip(self._first, later, strict=True):
                if first is not one:
                    first.join(one)
            self._joined += 1
        if self._joined < len(self.stretches):
            return []
        assert self._method is not None
        assert self._method.survey is not None
        for inquiries, first in zip(self._asking, self._first, strict=True):
            for inquiry in inquiries:
                inquiry.finished = first
        return self._next(self._method.survey, [i for same in self._asking for i in same])

    def describe(self, number: int, entry: Entry) -> Entry:
        """Return the entry of an output's stretch with what the surveys say; warnings once."""
        about = next(i.about for i in self._inquiries if number in i.branch.numbers)
        said = [{"code": w.code, "message": w.message} for w in about.warnings]
        first = (entry.name, entry.start) == (self.steps[0].name, 0)
        return replace(
            entry,
            diagnostics={**about.diagnostics, **entry.diagnostics},
            warnings=(*(said if first else ()), *entry.warnings),
        )

    def _next(self, survey: NextSurvey, inquiries: Sequence[Inquiry]) -> list[Task]:
        """Return the tasks of the next surveys, or the merges when no branch asks for any.

        Branches that ask the same share a survey; each stretch is surveyed into ones of its own.
        """
        made: list[Survey] = []
        self._asking = []
        for inquiry in inquiries:
            with naming(self._points, inquiry.branch.numbers):
                answer = inquiry.ask(survey)
            if not isinstance(answer, Survey):
                inquiry.settle(answer, self._all_equal)
                continue
            question = answer.question
            alike = [
                same
                for same, other in zip(self._asking, made, strict=True)
                if question is not None and other.question == question
            ]
            if alike:
                alike[0].append(inquiry)
            else:
                self._asking.append([inquiry])
                made.append(answer)
        if not made:
            return self._merges()
        self._first, self._joined = tuple(made), 0
        each = [self._first]
        each += [tuple(same[0].ask(survey) for same in self._asking) for _ in self.stretches[1:]]
        return [
            Task(self, stretch, number, surveys)
            for number, (stretch, surveys) in enumerate(zip(self.stretches, each, strict=True))
        ]

    def _merges(self) -> list[Task]:
        return [Task(self, stretch, number, ()) for number, stretch in enumerate(self._left)]


@dataclass
class Inquiry:
    """A branch on its way through its method's surveys: what they said, and the last of them."""

    branch: Branch
    about: About
    finished: Survey | None = None

    def ask(self, survey: NextSurvey) -> Any:
        """Return the next survey to make, or what `merge` must know."""
        return survey(self.about, self.branch.parameters, self.finished)

    def settle(self, answer: Any, all_equal: bool) -> None:
        """Give the branch what it must know."""
        described = "norms" in self.about.diagnostics
        self.branch.known = Known((answer,), self.finished is not None, all_equal, described)
        self.finished = None


def groups_of(plans: Sequence[Plan], inputs: Inputs) -> list[Group]:
    """Return the groups of plans with the same structure, one an output, in their order.

    A group of several tensors is where its first is.
    """
    members: dict[object, list[int]] = {}
    plan = plans[0]
    for number, step in enumerate(plan.steps):
        members.setdefault(_identity(step), []).append(number)
    groups, branching = [], Branching()
    for numbers in members.values():
        steps = [plan.steps[number] for number in numbers]
        stretches, origin = [], 0
        for step in steps:
            stretches += stretches_of(step, STRETCH_ENTRIES, origin)
            origin += step.target.numel
        branches = branching.branches_of([other.steps[numbers[0]] for other in plans])
        groups.append(Group(steps, stretches, inputs, branches))
    return groups


def structure_of(plan: Plan) -> Hashable:
    """Return what must be equal in plans that are run together: how tensors are cut and grouped."""
    return tuple((piece_of(step), _is_whole(step)) for step in plan.steps)


def _identity(step: Step) -> object:
    """Return what is the same for steps of one group."""
    return _Whole(step.assignment) if _is_whole(step) else step.name


def _is_whole(step: Step) -> bool:
    parameters = step.assignment.parameters
    merged = step.treatment is Treatment.MERGE and parameters is not None
    return merged and parameters is not None and parameters.whole_model


@dataclass(frozen=True)
class _Whole:
    assignment: Assignment


def _method(step: Step) -> Method | None:
    return load(step.assignment.method) if step.treatment is Treatment.MERGE else None
