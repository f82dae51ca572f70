"""Outputs that are merged from one reading, and what of a tensor's merge they have in common.

A merge has one output; a sweep has one for each of its points. A tensor's outputs whose parameters
differ in λ alone are one branch: surveyed and merged once, and scaled for each λ.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from app.contract.catalogue import MethodParameters
from app.contract.errors import AfluenteError
from app.planning.plan import Step, Treatment

_LAMBDA = "scaling_coefficient"
_Outputs = Mapping[float, Sequence[int]]
"""λ -> the numbers of the outputs that have it."""


@dataclass(frozen=True)
class Known:
    """What the surveys of a tensor found: what its method must know, and what the engine must.

    `described` says that they have told the norms and cosines already.
    """

    method: tuple[Any, ...] = ()
    surveyed: bool = False
    all_equal: bool = False
    described: bool = False


@dataclass
class Branch:
    """Outputs of a tensor (or of several that are surveyed together) that differ in λ alone.

    Attributes:
        parameters: the method's; those of the first output where λ differs.
        outputs: λ -> the numbers of the outputs that have it.
        known: what the surveys found, once they are made.
    """

    parameters: MethodParameters | None
    outputs: _Outputs = field(default_factory=lambda: {1.0: (0,)})
    known: Known = Known()

    @property
    def numbers(self) -> list[int]:
        """The numbers of all its outputs."""
        return [number for numbers in self.outputs.values() for number in numbers]


class Branching:
    """Finds tensors' branches; tensors of the same assignments are looked at once."""

    def __init__(self) -> None:
        self._found: dict[Hashable, list[tuple[MethodParameters | None, _Outputs]]] = {}

    def branches_of(self, steps: Sequence[Step]) -> list[Branch]:
        """Return the branches of one tensor, given its step in the plan of every output."""
        # A plan's steps share their assignments, and comparing parameters takes time.
        assignments = tuple(id(step.assignment) for step in steps)
        key = (steps[0].treatment, assignments)
        if key not in self._found:
            self._found[key] = _branches(steps)
        return [Branch(parameters, outputs) for parameters, outputs in self._found[key]]


@contextmanager
def naming(points: Sequence[str], numbers: Sequence[int]) -> Iterator[None]:
    """Let an error say at which points of a sweep it came up: those of these outputs."""
    try:
        yield
    except AfluenteError as error:
        names = [points[number] for number in numbers if points[number]]
        if not names:
            raise
        more = f" and {len(names) - 1} more points" if len(names) > 1 else ""
        message = f"At {names[0]}{more}: {error.message}"
        raise type(error)(message, param=error.param, problems=error.problems) from error


def _branches(steps: Sequence[Step]) -> list[tuple[MethodParameters | None, _Outputs]]:
    members: dict[MethodParameters | None, dict[float, list[int]]] = {}
    for number, step in enumerate(steps):
        parameters = step.assignment.parameters
        outputs = members.setdefault(_without_lambda(step), {})
        outputs.setdefault(float(getattr(parameters, _LAMBDA, 1.0)), []).append(number)
    first = [next(iter(outputs.values()))[0] for outputs in members.values()]
    parameters_of = [steps[number].assignment.parameters for number in first]
    return list(zip(parameters_of, members.values(), strict=True))


def _without_lambda(step: Step) -> MethodParameters | None:
    """Return the parameters that decide the merged tensor before λ: of a mean, none do."""
    parameters = step.assignment.parameters if step.treatment is Treatment.MERGE else None
    if parameters is None or _LAMBDA not in type(parameters).model_fields:
        return parameters
    return parameters.model_copy(update={_LAMBDA: 1.0})
