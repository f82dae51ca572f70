"""Works through one stretch of one tensor: surveys it, or merges and writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from app.contract.errors import IncompatibleCheckpointError
from app.planning.cost import BLOCK_ENTRIES
from app.planning.plan import Step
from worker.merging.engine.blocks import Blocks, Inputs, piece_of
from worker.merging.engine.branches import Branch
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
    stretch: Stretch, blocks: Blocks, surveys: Sequence[Survey], check: Callable[[], None]
) -> bool:
    """Add the stretch to surveys; say whether all inputs are equal there. `check` interrupts."""
    equal = True
    for start in range(stretch.start, stretch.stop, blocks.width):
        check()
        equal &= blocks.survey(start, min(start + blocks.width, stretch.stop), surveys)
    return equal


def merge_stretch(
    stretch: Stretch,
    blocks: Blocks,
    branches: Sequence[Branch],
    writers: Sequence[OutputWriter],
    check: Callable[[], None],
) -> list[Entry]:
    """Merge and write the stretch of every output; return their journal entries, one a writer.

    `check` raises to interrupt.
    """
    step, digests = stretch.step, [StretchDigest() for _ in writers]
    for start in range(stretch.start, stretch.stop, blocks.width):
        check()
        stop = min(start + blocks.width, stretch.stop)
        for numbers, place, values in blocks.merged(start, stop):
            check()
            for number in numbers:
                writers[number].write(step.name, place, values, digests[number])
    entries: dict[int, Entry] = {}
    products = [] if blocks.inner_products is None else blocks.inner_products.tolist()
    for branch, said in zip(branches, blocks.merge_inputs, strict=True):
        warnings = tuple({"code": w.code, "message": w.message} for w in said.warnings)
        for number in branch.numbers:
            entries[number] = Entry(
                *stretch.key,
                digests[number].hexdigest(),
                said.diagnostics,
                warnings,
                said.counts,
                products,
            )
    return [entries[number] for number in range(len(writers))]


def copy_stretch(
    stretch: Stretch,
    inputs: Inputs,
    writers: Sequence[OutputWriter],
    check: Callable[[], None],
) -> list[Entry]:
    """Copy a tensor that is not floating point, which all inputs must agree on."""
    name, digests = stretch.step.name, [StretchDigest() for _ in writers]
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
        values = raw.view(DTYPES[stretch.step.target.dtype])
        for writer, digest in zip(writers, digests, strict=True):
            writer.write(name, start, values, digest)
    return [Entry(*stretch.key, digest.hexdigest()) for digest in digests]


def stretches_of(step: Step, most_entries: int, origin: int = 0) -> list[Stretch]:
    """Return the step's stretches: pieces of a tensor that is merged by blocks, else all of it."""
    entries, (piece, _) = step.target.numel, piece_of(step)
    if piece >= entries or entries <= most_entries:
        return [Stretch(step, 0, entries, origin)]
    edges = [*range(0, entries, piece * max(1, most_entries // piece)), entries]
    return [Stretch(step, a, b, origin) for a, b in pairwise(edges)]
