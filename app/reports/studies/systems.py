"""What a study's table is made of: the systems with their transcripts, and the study's facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.contract.evaluation import EvaluatedDataset

Kind = Literal["base", "expert", "reference", "trial"]


@dataclass(frozen=True)
class StudySystem:
    """A base, an expert, a reference or a trial, with its results on the sets of one section.

    A stopped or running trial has results on a `fraction` of each set's utterances. In the test
    section a kept merge is its trial, with `merge_id`. `objectives` are those on the development
    sets, in the study's order; `values` are the searched parameters by name.
    """

    key: str
    kind: Kind
    label: str
    results: tuple[EvaluatedDataset, ...]
    method: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    number: int | None = None
    merge_id: str | None = None
    status: Literal["complete", "stopped", "running", "failed"] = "complete"
    fraction: float = 1.0
    reason: str | None = None
    feasible: bool | None = None
    objectives: tuple[float, ...] | None = None


@dataclass(frozen=True)
class StudyFacts:
    """What the study's own row says.

    `outcome` has `winner` (a trial's number), `shipped` (a merge's id), `reason` (why nothing is
    shipped), `kept` (`{"trial", "merge_id"}` each) and `front` (numbers). `budget` has
    `{"used", "limit"}` by unit (`trials`, `seconds`, ...); a limit may be None. `importance` has,
    by method, the share of the objective's variance that each parameter explains.
    """

    id: str
    name: str | None
    status: str
    phase: str | None
    objectives: tuple[str, ...]
    constraints: tuple[Mapping[str, Any], ...]
    outcome: Mapping[str, Any]
    budget: Mapping[str, Any]
    importance: Mapping[str, Mapping[str, float]]
