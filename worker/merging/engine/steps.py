"""Works through one stretch of one tensor: surveys it, or merges and writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from app.contract.errors import IncompatibleCheckpointError
from app.planning.cost import BLOCK_ENTRIES
from app.planning.plan import Step, Treatment
from worker.merging.engine.blocks import Blocks, Inputs, Known, piece_of
from worker.merging.engine.journal import Entry
from worker.merging.engine.reading import DTYPES
from worker.merging.engine.writing import OutputWriter, StretchDigest
from worker.merging.interface import Survey


@dataclass(frozen=True)
class Stretch:
    """Entries `start` to `stop` of a step's tensor, worked through in one go by one thread.

    `origin` is where the tensor begins among those that are surveyed together.
    """

    step: Step
    start: int
    stop: int
    origin: int = 0

    @property
    def key(self) -> tuple[str, int, int]:
        """What the journal knows it by."""
        return self.step.name, self.start, self.stop


def survey_stretch(
    stretch: Stretch, inputs: Inputs, survey: Survey, check: Callable[[], None]
) -> bool:
    """Add the stretch to a survey; say whether all inputs are equal there. `check` interrupts."""
    blocks, equal = Blocks(stretch.step, inputs, stretch.origin), True
    for start in range(stretch.start, stretch.stop, blocks.width):
        check()
        equal &= blocks.survey(start, min(start + blocks.width, stretch.stop), survey)
    return equal


def merge_stretch(
    stretch: Stretch,
    inputs: Inputs,
    known: Known,
    writer: OutputWriter,
    check: Callable[[], None],
) -> Entry:
    """Merge and write the stretch; return its journal entry. `check` raises to interrupt."""
    step, digest = stretch.step, StretchDigest()
    if step.treatment is Treatment.COPY:
        _copy(stretch, inputs, writer, digest, check)
        return Entry(*stretch.key, digest.hexdigest())
    blocks = Blocks(step, inputs, stretch.origin)
    for start in range(stretch.start, stretch.stop, blocks.width):
        check()
        stop = min(start + blocks.width, stretch.stop)
        writer.write(step.name, start, blocks.merged(start, stop, known), digest)
    said = blocks.merge_inputs
    warnings = tuple({"code": w.code, "message": w.message} for w in said.warnings)
    return Entry(*stretch.key, digest.hexdigest(), said.diagnostics, warnings, said.counts)


def _copy(
    stretch: Stretch,
    inputs: Inputs,
    writer: OutputWriter,
    digest: StretchDigest,
    check: Callable[[], None],
) -> None:
    """Copy a tensor that is not floating point, which all inputs must agree on."""
    name = stretch.step.name
    others = [inputs.base, *inputs.experts] if inputs.base else list(inputs.experts)
    for start in range(stretch.start, stretch.stop, BLOCK_ENTRIES):
        check()
        stop = min(start + BLOCK_ENTRIES, stretch.stop)
        raw = inputs.reference.read_bytes(name, start, stop)
        for other in others:
            if not torch.equal(raw, other.read_bytes(name, start, stop)):
                raise IncompatibleCheckpointError(
                    f"{other.label}: {name} is not floating point and differs from that of "
                    f"{inputs.reference.label}; such tensors must be equal in all inputs."
                )
        writer.write(name, start, raw.view(DTYPES[stretch.step.target.dtype]), digest)


def stretches_of(step: Step, most_entries: int, origin: int = 0) -> list[Stretch]:
    """Return the step's stretches: pieces of a tensor that is merged by blocks, else all of it."""
    entries, (piece, _) = step.target.numel, piece_of(step)
    if piece >= entries or entries <= most_entries:
        return [Stretch(step, 0, entries, origin)]
    edges = [*range(0, entries, piece * max(1, most_entries // piece)), entries]
    return [Stretch(step, a, b, origin) for a, b in pairwise(edges)]
