"""Runs a merge method on tensors in memory, as the engine does on files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from app.contract.catalogue import parse_parameters
from worker.merging.method import Block, Combine, Notes, Reduction, State, Statistics, Subject
from worker.merging.methods import load


@dataclass
class Merged:
    """A merge, and what the method had to say."""

    tensor: torch.Tensor
    diagnostics: dict[str, Any]
    counts: dict[str, int]
    warnings: list[tuple[str, str]]
    readings: int = 1


def merge_in_memory(
    name: str,
    tensors: Any,
    weights: Sequence[float] | None = None,
    *,
    base: torch.Tensor | None = None,
    unit_roundoff: float = 2.0**-24,
    rows: int | None = None,
    stretch: int | None = None,
    seed: Callable[[int], int] = hash,
    statistics: Statistics | None = None,
    **given: Any,
) -> Merged:
    """Merge task vectors (or weights) as the engine does, by blocks of so many rows.

    `stretch` rows are reduced at a time, and joined. Without `rows` the tensor is one block.
    """
    parameters = parse_parameters(name, given)
    tensors = torch.as_tensor(tensors, dtype=torch.float32)
    base = torch.zeros_like(tensors[0]) if base is None else base
    weights = tuple(weights or [1.0] * len(tensors))
    m, *row = tensors.shape[1:]
    transposed = parameters.spectral and rows is None and m <= row[0]
    shape = tuple(tensors.shape[1:])[::-1] if transposed else tuple(tensors.shape[1:])
    subject = Subject(
        "model.encoder.layers.0.fc1.weight",
        shape,
        weights,
        unit_roundoff=unit_roundoff,
        transposed=transposed,
        statistics=statistics,
        seed=seed,
    )
    whole = parameters.spectral or parameters.by_rows

    def shaped(part: torch.Tensor) -> torch.Tensor:
        flat = part if whole else part.flatten(1)
        return flat.mT if transposed else flat

    def blocks(first: int, last: int) -> Iterator[Block]:
        step = rows or m
        for start in range(first, last, step):
            part = slice(start, min(start + step, last))
            experts, of_base = shaped(tensors[:, part]), shaped(base[None, part])[0]
            block = Block(
                weights, experts, base=of_base, start=start * math.prod(row), resident=rows is None
            )
            if parameters.of_sum:
                products = block.products
                block = Block(
                    weights, None, base=of_base, total=block.sum, products=products,
                    start=block.start,
                )  # fmt: skip
            yield block

    def reduced(reduction: Reduction) -> Any:
        states: list[State] = []
        for first in range(0, m, stretch or m):
            states.append({})
            for block in blocks(first, min(first + (stretch or m), m)):
                reduction.add(states[-1], block, subject)
        for later in states[1:]:
            reduction.join(states[0], later)
        return reduction.finish(states[0], subject)

    found, readings = load(name)(subject, parameters), 1
    if not isinstance(found, Combine):
        steps, answer = found, None
        try:
            while True:
                asked = steps.send(answer)
                readings += 1
                several = isinstance(asked, tuple)
                answers = tuple(map(reduced, asked if several else (asked,)))
                answer = answers if several else answers[0]
        except StopIteration as end:
            found = end.value
    notes = Notes()
    merged = [found(block, notes) for block in blocks(0, m)]
    merged = [part.mT.contiguous() if transposed else part for part in merged]
    said = subject.notes
    tensor = torch.cat([part.reshape(-1) for part in merged]).view(tensors.shape[1:])
    return Merged(
        tensor,
        {**said.diagnostics, **notes.diagnostics},
        notes.counts,
        said.warnings + notes.warnings,
        readings,
    )
