"""Gates of evaluations: judged once, when the evaluation ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine

from app.contract.errors import Problem
from app.contract.evaluation import EvaluationSpec
from app.contract.gate import GateSpec
from app.contract.identifiers import merge_in
from app.contract.problems import did_you_mean
from app.contract.states import OPEN
from app.reports.gate import judge, unfinished
from app.services.resources import GateResource
from app.services.selection import MERGE, choose, standings, unpack
from app.storage import evaluations

Row = Mapping[Any, Any]


def decide(
    engine: Engine, merge_id: str, evaluation_id: str, spec: EvaluationSpec, status: str
) -> dict[str, Any] | None:
    """Return the verdict on an evaluation that ends with this status, or None without a gate.

    Only this evaluation's results count, with its own normalisers.
    """
    if spec.gate is None:
        return None
    from app.reports.wer import build_wer  # the scorers are slow to import

    systems: dict[str, list[Any]] = {}
    rows = evaluations.results(engine, merge_id, evaluation_id)
    for row in choose(rows):
        if row["system"] in {MERGE, spec.gate.system}:
            systems.setdefault(str(row["system"]), []).append(unpack(row))
    own = systems.pop(MERGE, [])
    document = build_wer(merge_id, status, own, systems)
    ending = {"id": evaluation_id, "status": status, "spec": spec.model_dump(mode="json")}
    return judge(document, spec.gate, standings([ending], rows))


def gate_of(
    spec: Mapping[str, Any], status: str, verdict: Mapping[str, Any] | None
) -> GateResource | None:
    """Return the gate of an evaluation for a response, from its spec and stored verdict."""
    if not spec.get("gate"):
        return None
    if status in OPEN or verdict is None:
        verdict = unfinished(GateSpec.model_validate(spec["gate"]), status)
    return GateResource.model_validate(verdict)


def problems_with_system(
    spec: EvaluationSpec, *, has_base: bool, experts: Sequence[str], prefix: str
) -> list[Problem]:
    """Return what is wrong with a gate's `against`."""
    gate = spec.gate
    if gate is None or not gate.max_regression or merge_in(gate.against):
        return []
    known = [*(["base"] if has_base else []), *experts]
    known += [reference.name for reference in spec.references]
    if gate.against in known:
        return []
    listed = ", ".join(known)
    text = f'The merge has no "{gate.against}".{did_you_mean(gate.against, known)} Known: {listed}.'
    return [Problem(text, f"{prefix}gate.against")]
