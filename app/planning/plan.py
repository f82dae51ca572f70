"""The plan of a merge: the treatment, output position and cost of every tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import translate
from typing import Any

from app.contract.catalogue import CATALOGUE, MethodParameters
from app.contract.recipe import KEEP_BASE, Recipe
from app.contract.tensors import DTYPE_NAMES, ITEM_SIZES, AddedRows, TensorHeader
from app.planning.cost import Cost, Cut, cost_of
from app.planning.layout import OutputFile, lay_out, lay_out_adapter

_Tensors = Mapping[str, TensorHeader]
KEEP_EXPERTS = "keep_experts"
"""What a plan calls the method of added rows; no rule can name it."""

# Whoever plans does not know the worker that will merge.
_AT_ONCE = {
    "threads": "AFLUENTE_THREADS of the worker; if not set, the number of cores that it may use.",
    "working_memory": "AFLUENTE_MEMORY_BYTES of the worker; if not set, half of the memory that is "
    "available to it (in a container, of what its limit leaves). Tensors are merged at the same "
    "time while their memory_bytes fit into it; a single tensor may exceed it.",
}


# A layer's number, behind what transformers and others call a stack of layers.
_LAYER = re.compile(r"(?:.*?\.)??(?:layers?|blocks?|resblocks|h)\.(\d+)\.")


class Treatment(StrEnum):
    """What is done with a tensor."""

    MERGE = "merge"  # by the method
    MEAN = "mean"  # λ·mean(wᵢdᵢ): spectral methods on tensors that are not matrices
    KEEP = "keep"  # copied from the reference, by rule
    CARRY = "carry"  # rows that experts have beyond the reference's
    COPY = "copy"  # not floating point: must be equal in all inputs


@dataclass(frozen=True)
class Assignment:
    """A method with its parameters, and the rule that chose it (None: the recipe's own)."""

    method: str
    parameters: MethodParameters | None
    rule: str | None
    weights: tuple[float, ...] | None = None
    """The experts' weights by rule; None: the recipe's."""


@dataclass(frozen=True)
class Step:
    """One tensor: how it is treated, by which assignment, how it is cut, and at what cost.

    `passes` is how often its bytes are read, `depth` where its layer is in its stack: from 0, for
    the first layer and for tensors outside of layers, to 1 for the last.
    `added` are the rows that are carried over.
    """

    target: TensorHeader
    treatment: Treatment
    assignment: Assignment
    cut: Cut
    passes: int
    cost: Cost
    depth: float = 0.0
    added: AddedRows | None = None

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.target.name

    @property
    def parameters(self) -> MethodParameters | None:
        """The parameters of the method that merges it; None where no method does."""
        return self.assignment.parameters if self.treatment is Treatment.MERGE else None

    @property
    def whole_model(self) -> bool:
        """Whether its reductions go over all tensors that the method merges."""
        return self.parameters is not None and self.parameters.whole_model


@dataclass(frozen=True)
class Plan:
    """All steps in output order, and the output files.

    If the artifact is to be an `adapter`, they are what it is made of, and not published.
    """

    steps: tuple[Step, ...]
    files: tuple[OutputFile, ...]
    unmatched_rules: tuple[str, ...]
    adapter: OutputFile | None = None

    def as_document(self) -> dict[str, Any]:
        """Return the plan as a dry run shows it."""
        costs = [step.cost for step in self.steps]
        published = self.files if self.adapter is None else (self.adapter,)
        return {
            "tensors": [_step_document(step) for step in self.steps],
            "files": [{"name": file.name, "bytes": file.size_bytes} for file in published],
            "totals": {
                "tensors": len(self.steps),
                "by_treatment": dict(Counter(step.treatment.value for step in self.steps)),
                "flops": sum(cost.flops for cost in costs),
                "bytes_read": sum(cost.bytes_read for cost in costs),
                "bytes_written": sum(file.size_bytes for file in self.files),
                "peak_memory_bytes": max((cost.memory_bytes for cost in costs), default=0),
            },
            "merged_at_once": _AT_ONCE,
        }


def make_plan(
    recipe: Recipe,
    tensors: _Tensors,
    base: _Tensors | None,
    experts: Sequence[_Tensors],
    rows: Sequence[AddedRows] = (),
    adapted: Collection[str] = (),
) -> Plan:
    """Return the plan; `tensors` are the reference's in stored order, without tied duplicates.

    `rows` are those that experts have beyond them, each part a tensor in `experts`; `adapted` the
    matrices that experts change, for an adapter.
    """
    dtypes = {tensor.name: _output_dtype(tensor, recipe) for tensor in tensors.values()}
    added: dict[str, list[TensorHeader]] = {}
    for part in rows:
        added.setdefault(part.tensor, []).append(part.target)
    files = lay_out(tensors.values(), dtypes, recipe.output.max_shard_bytes, added)
    carried = {part.target.name: part for part in rows}
    main = Assignment(recipe.method, recipe.method_parameters, None)
    rules = [
        (
            # fnmatchcase would look up each pattern for every tensor.
            re.compile(translate(rule.match)),
            Assignment(
                rule.method, _parameters(rule.method, rule.parameters), rule.match, rule.weights
            ),
        )
        for rule in recipe.rules
    ]
    depths = depths_of(tensors)
    steps = tuple(
        _carried(target, carried[target.name], experts)
        if target.name in carried
        else replace(
            _step(target, _assign(target.name, rules, main), tensors, base, experts),
            depth=depths[target.name],
        )
        for file in files
        for target in file.tensors
    )
    used = {step.assignment.rule for step in steps}
    unmatched = tuple(rule.match for rule in recipe.rules if rule.match not in used)
    adapter = None
    if recipe.output.rank is not None:
        dtype = DTYPE_NAMES[recipe.output.dtype or "float32"]
        matrices = [tensors[name] for name in adapted]
        adapter = lay_out_adapter(matrices, recipe.output.rank, dtype)
    return Plan(steps, files, unmatched, adapter)


def depths_of(names: Iterable[str]) -> dict[str, float]:
    """Return each tensor's depth: its layer's place among the layers of the same stack."""
    found = {name: _LAYER.match(name) for name in names}
    layers = {name: (one[0][: one.start(1)], int(one[1])) for name, one in found.items() if one}
    last: dict[str, int] = {}
    for stack, number in layers.values():
        last[stack] = max(number, last.get(stack, 1))
    return {
        name: layers[name][1] / last[layers[name][0]] if name in layers else 0.0 for name in found
    }


def _output_dtype(tensor: TensorHeader, recipe: Recipe) -> str:
    if tensor.is_float and recipe.output.form == "lora":
        return "F32"  # the adapter is made of it, and rounded then
    if tensor.is_float and recipe.output.dtype is not None:
        return DTYPE_NAMES[recipe.output.dtype]
    return tensor.dtype


def _parameters(method: str, given: Mapping[str, Any]) -> MethodParameters | None:
    return None if method == KEEP_BASE else CATALOGUE[method].model_validate(given)


def _assign(
    name: str, rules: Sequence[tuple[re.Pattern[str], Assignment]], main: Assignment
) -> Assignment:
    return next((chosen for pattern, chosen in rules if pattern.match(name)), main)


def _step(
    target: TensorHeader,
    assignment: Assignment,
    tensors: _Tensors,
    base: _Tensors | None,
    experts: Sequence[_Tensors],
) -> Step:
    treatment = _treatment(target, assignment)
    sources = [expert[target.name] for expert in experts]
    if treatment is Treatment.KEEP:
        sources = [tensors[target.name]]
    elif base is not None and (treatment is Treatment.COPY or _uses_base(assignment)):
        sources.insert(0, base[target.name])
    parameters = assignment.parameters if treatment is Treatment.MERGE else None
    return Step(target, treatment, assignment, *cost_of(target, sources, parameters))


def _carried(target: TensorHeader, rows: AddedRows, experts: Sequence[_Tensors]) -> Step:
    sources = [experts[number][target.name] for number in rows.holders]
    assignment = Assignment(KEEP_EXPERTS, None, None)
    return Step(target, Treatment.CARRY, assignment, *cost_of(target, sources, None), added=rows)


def _uses_base(assignment: Assignment) -> bool:
    return assignment.parameters is not None and assignment.parameters.base != "unused"


def _treatment(target: TensorHeader, assignment: Assignment) -> Treatment:
    if not target.is_float:
        return Treatment.COPY
    if assignment.parameters is None or target.numel == 0:
        return Treatment.KEEP
    if assignment.parameters.spectral and len(target.shape) != 2:
        return Treatment.MEAN
    return Treatment.MERGE


def _step_document(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "shape": list(step.target.shape),
        "dtype": step.target.dtype,
        "treatment": step.treatment.value,
        "method": step.assignment.method,
        "rule": step.assignment.rule,
        "passes": step.passes,
        "scope": "model" if step.whole_model else "tensor",
        "flops": step.cost.flops,
        "bytes_read": step.cost.bytes_read,
        "bytes_written": step.target.numel * ITEM_SIZES[step.target.dtype],
        "memory_bytes": step.cost.memory_bytes,
    }
