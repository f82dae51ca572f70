"""Merges one stretch of one tensor: read, subtract the base, merge, λ, one rounding, write.

Everything that is the same for all methods is here, and nowhere else: the base, λ, dtypes, inputs
that are all equal, tensors that a spectral method does not take, NaN and infinity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, prod

import torch

from app.contract.errors import (
    IncompatibleCheckpointError,
    NonFiniteInputError,
    OutputOverflowError,
)
from app.contract.tensors import UNIT_ROUNDOFFS
from app.planning.cost import BLOCK_ENTRIES
from app.planning.plan import Step, Treatment
from worker.merging.engine.journal import Entry
from worker.merging.engine.reading import DTYPES, TensorReader
from worker.merging.engine.writing import OutputWriter, StretchDigest
from worker.merging.interface import MergeInputs
from worker.merging.methods import load

# How much of two tensors is compared before the rest is: nearly all that differ, differ here.
_GLANCE = 256


@dataclass(frozen=True)
class Stretch:
    """Entries `start` to `stop` of a step's tensor, merged in one go by one thread."""

    step: Step
    start: int
    stop: int

    @property
    def key(self) -> tuple[str, int, int]:
        """What the journal knows it by."""
        return self.step.name, self.start, self.stop


@dataclass(frozen=True)
class Inputs:
    """The open checkpoints of a merge, and what of the recipe every tensor needs."""

    base: TensorReader | None
    experts: tuple[TensorReader, ...]
    expert_digests: tuple[str, ...]
    weights: tuple[float, ...]
    seed: int
    device: torch.device

    @property
    def reference(self) -> TensorReader:
        """The base if there is one, else the first expert."""
        return self.base or self.experts[0]


def merge_stretch(
    stretch: Stretch, inputs: Inputs, writer: OutputWriter, check: Callable[[], None]
) -> Entry:
    """Merge and write the stretch; return its journal entry. `check` raises to interrupt."""
    step, digest = stretch.step, StretchDigest()
    if step.treatment is Treatment.COPY:
        _copy(stretch, inputs, writer, digest, check)
        return Entry(*stretch.key, digest.hexdigest())
    job = _TensorMerge(step, inputs)
    width = stretch.stop - stretch.start
    if job.blockwise:
        width = min(width, BLOCK_ENTRIES)
    for start in range(stretch.start, stretch.stop, width):
        check()
        stop = min(start + width, stretch.stop)
        writer.write(step.name, start, job.merged(start, stop), digest)
    warnings = tuple({"code": w.code, "message": w.message} for w in job.merge_inputs.warnings)
    return Entry(*stretch.key, digest.hexdigest(), job.merge_inputs.diagnostics, warnings)


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


class _TensorMerge:
    """One step's tensor: its readers, its method, and buffers that all its blocks share."""

    def __init__(self, step: Step, inputs: Inputs) -> None:
        self._step, self._inputs = step, inputs
        self._parameters = step.assignment.parameters
        parameters = self._parameters
        self.blockwise = step.treatment is not Treatment.MERGE or (
            parameters is not None and parameters.blockwise
        )
        self._uses_base = (
            step.treatment is not Treatment.KEEP
            and parameters is not None
            and parameters.base != "unused"
            and inputs.base is not None
        )
        self._task_vectors = parameters is not None and parameters.space == "task_vectors"
        self._scale = float(getattr(parameters, "scaling_coefficient", 1.0))
        self._out_dtype = DTYPES[step.target.dtype]
        readers = list(inputs.experts)
        if step.treatment is Treatment.KEEP:
            readers = [inputs.reference]
        elif self._uses_base and inputs.base is not None:
            readers.insert(0, inputs.base)
        self._readers = readers
        entries = step.target.numel
        self._buffer = torch.empty(
            len(readers), min(entries, BLOCK_ENTRIES) if self.blockwise else entries
        )
        self.merge_inputs = MergeInputs(
            name=step.name,
            base=None,
            tensors=torch.empty(0),
            weights=inputs.weights,
            unit_roundoff=self._unit_roundoff(),
            generator=self._generator,
        )

    def merged(self, start: int, stop: int) -> torch.Tensor:
        """Return the entries `start` to `stop` of the result, flat, in the output dtype."""
        rows = self._read(start, stop)
        if self._step.treatment is Treatment.KEEP:
            return self._rounded(rows[0])
        self._refuse_non_finite(rows)
        if _all_equal(rows) and self._copies_equal_inputs():
            return self._rounded(rows[0])
        if not (self._uses_base and self._task_vectors):
            base = rows[0] if self._uses_base else None
            return self._rounded(self._call(base, rows[1:] if self._uses_base else rows))
        base, task_vectors = rows[0], rows[1:]
        if self._scale == 0.0:
            return self._rounded(base)
        task_vectors -= base
        merged = self._call(base, task_vectors)
        return self._rounded(torch.add(base, merged, alpha=self._scale))

    def _read(self, start: int, stop: int) -> torch.Tensor:
        count, width = len(self._readers), stop - start
        rows = self._buffer.view(-1)[: count * width].view(count, width)
        for row, reader in zip(rows, self._readers, strict=True):
            reader.read_into(self._step.name, start, row)
        return rows

    def _call(self, base: torch.Tensor | None, tensors: torch.Tensor) -> torch.Tensor:
        """Return what the method makes of a block, flat and on the CPU."""
        if self._step.treatment is Treatment.MEAN:
            return _weighted_sum(tensors, self._inputs.weights) / len(tensors)
        device = self._inputs.device
        shape = tensors.shape[1:] if self.blockwise else self._step.target.shape
        self.merge_inputs.base = None if base is None else base.view(shape).to(device)
        self.merge_inputs.tensors = tensors.view(-1, *shape).to(device)
        method = load(self._step.assignment.method)
        merged: torch.Tensor = method(self.merge_inputs, self._parameters)
        return merged.to("cpu").reshape(-1)

    def _copies_equal_inputs(self) -> bool:
        """Say whether equal inputs are the answer: no task vector, or a normalised average."""
        if self._uses_base:
            return True
        return bool(getattr(self._parameters, "normalize", True))

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        rounded = values.to(self._out_dtype)
        if not _surely_finite(rounded) and not bool(torch.isfinite(rounded).all()):
            if self._step.treatment is Treatment.KEEP:
                self._refuse_non_finite(values.unsqueeze(0))
            raise OutputOverflowError(
                f"{self._step.name}: a merged value does not fit {self._step.target.dtype}; choose "
                "a wider output.dtype, or a smaller scaling_coefficient or weights."
            )
        return rounded

    def _refuse_non_finite(self, rows: torch.Tensor) -> None:
        if _surely_finite(rows):
            return
        for reader, row in zip(self._readers, rows, strict=True):
            bad = int((~torch.isfinite(row)).sum())
            if bad:
                raise NonFiniteInputError(
                    f"{reader.label}: {self._step.name} holds NaN or infinity ({bad} of the "
                    f"{row.numel()} entries looked at); such a checkpoint cannot be merged."
                )

    def _unit_roundoff(self) -> float:
        dtypes = [reader.tensors[self._step.name].dtype for reader in self._readers]
        return max(UNIT_ROUNDOFFS[dtype] for dtype in dtypes)

    def _generator(self, expert: int) -> torch.Generator:
        source = f"{self._inputs.seed}\n{self._step.name}\n{self._inputs.expert_digests[expert]}"
        seed = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "little", signed=True)
        return torch.Generator(self._inputs.device).manual_seed(seed)


def _weighted_sum(tensors: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    factors = torch.tensor(weights, dtype=tensors.dtype)
    total: torch.Tensor = torch.tensordot(factors, tensors, dims=1)
    return total


def _surely_finite(values: torch.Tensor) -> bool:
    """Say whether a sum is finite: then all its terms are. One pass, and no copy."""
    wide = values.dtype if values.dtype is torch.float64 else torch.float32
    return isfinite(values.sum(dtype=wide).item())


def _all_equal(rows: torch.Tensor) -> bool:
    """Say whether all rows hold the same bits."""
    bits = rows.view(torch.int32)
    first, glance = bits[0], bits[1:, :_GLANCE]
    if len(rows) == 1 or not torch.equal(glance, first[:_GLANCE].expand_as(glance)):
        return False
    return all(torch.equal(row, first) for row in bits[1:])


def stretches_of(step: Step, most_entries: int) -> list[Stretch]:
    """Return the step's stretches: pieces of a tensor that is merged by blocks, else all of it."""
    entries = prod(step.target.shape)
    parameters = step.assignment.parameters
    whole = step.treatment is Treatment.MERGE and not (parameters and parameters.blockwise)
    if whole or entries <= most_entries:
        return [Stretch(step, 0, entries)]
    edges = [*range(0, entries, most_entries), entries]
    return [Stretch(step, a, b) for a, b in pairwise(edges)]
