"""The blocks of one tensor: read, checked, the base subtracted, merged by the method, rounded.

Everything that is the same for all methods is here, and nowhere else: the base, λ, dtypes, inputs
that are all equal, tensors that a spectral method does not take, NaN and infinity.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import torch

from app.contract.errors import NonFiniteInputError, OutputOverflowError
from app.contract.tensors import UNIT_ROUNDOFFS
from app.planning.cost import BLOCK_ENTRIES
from app.planning.plan import Step, Treatment
from worker.merging.engine.reading import DTYPES, TensorReader
from worker.merging.interface import MergeInputs, Survey
from worker.merging.linalg.sums import weighted_sum
from worker.merging.methods import load

# How much of two tensors is compared before the rest is: nearly all that differ, differ here.
_GLANCE = 256


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

    def merged_weights(self, step: Step) -> tuple[float, ...]:
        """Return the weights of what a step merges: with the base, if that is one of them."""
        parameters = step.assignment.parameters
        if parameters is not None and parameters.counts_base and self.base is not None:
            return (1.0, *self.weights)
        return self.weights


@dataclass(frozen=True)
class Known:
    """What the surveys of a tensor found: what its method must know, and what the engine must."""

    method: tuple[Any, ...] = ()
    surveyed: bool = False
    all_equal: bool = False


class Blocks:
    """One step's tensor: its readers, its method, and buffers that all its blocks share."""

    def __init__(self, step: Step, inputs: Inputs, origin: int = 0) -> None:
        self._step, self._inputs, self._origin = step, inputs, origin
        self._parameters = parameters = step.assignment.parameters
        self._keep = step.treatment is Treatment.KEEP
        subtracts = parameters is not None and parameters.space == "task_vectors"
        wanted = parameters is not None and parameters.base != "unused"
        has_base = wanted and not self._keep and inputs.base is not None
        counted = parameters is not None and parameters.counts_base
        self._uses_base = has_base and not counted
        self._subtracts = self._uses_base and subtracts
        self._scale = float(getattr(parameters, "scaling_coefficient", 1.0))
        self._out_dtype = DTYPES[step.target.dtype]
        self._readers = [inputs.reference] if self._keep else list(inputs.experts)
        if has_base and inputs.base is not None:
            self._readers.insert(0, inputs.base)
        piece, self._block_shape = piece_of(step)
        self.width = piece * max(1, BLOCK_ENTRIES // piece)
        entries = min(self.width, step.target.numel)
        self._buffer = torch.empty(len(self._readers), entries)
        self.merge_inputs = MergeInputs(
            name=step.name,
            base=None,
            tensors=torch.empty(0),
            weights=inputs.merged_weights(step),
            unit_roundoff=self._unit_roundoff(),
            seed=self._seed,
        )

    def survey(self, start: int, stop: int, survey: Survey) -> bool:
        """Add the entries `start` to `stop` to a survey; say whether they are the same in all."""
        rows = self._read(start, stop)
        self._refuse_non_finite(rows)
        equal = _all_equal(rows)
        self._hand_over(start, rows)
        survey.add(self.merge_inputs)
        return equal

    def merged(self, start: int, stop: int, known: Known) -> torch.Tensor:
        """Return the entries `start` to `stop` of the result, flat, in the output dtype."""
        rows = self._read(start, stop)
        if self._keep:
            return self._rounded(rows[0])
        self._refuse_non_finite(rows)
        if self._subtracts and self._scale == 0.0:
            return self._rounded(rows[0])
        if self._copies_equal_inputs(known) and _all_equal(rows):
            return self._rounded(rows[0])
        self._hand_over(start, rows)
        merged = self._call(known)
        if self._subtracts:
            merged = torch.add(rows[0], merged, alpha=self._scale)
        return self._rounded(merged)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        count, width = len(self._readers), stop - start
        rows = self._buffer.view(-1)[: count * width].view(count, width)
        for row, reader in zip(rows, self._readers, strict=True):
            reader.read_into(self._step.name, start, row)
        return rows

    def _hand_over(self, start: int, rows: torch.Tensor) -> None:
        """Make the block the method's inputs; task vectors take the place of the experts."""
        base, tensors = (rows[0], rows[1:]) if self._uses_base else (None, rows)
        if base is not None and self._subtracts:
            tensors -= base
        device, shape = self._inputs.device, self._block_shape
        self.merge_inputs.base = None if base is None else base.view(shape).to(device)
        self.merge_inputs.tensors = tensors.view(len(tensors), *shape).to(device)
        self.merge_inputs.start = self._origin + start

    def _call(self, known: Known) -> torch.Tensor:
        """Return what the method makes of a block, flat and on the CPU."""
        inputs = self.merge_inputs
        if self._step.treatment is Treatment.MEAN:
            total = weighted_sum(inputs.tensors, inputs.weights, normalize=False)
            return total.div_(len(inputs.tensors)).to("cpu").view(-1)
        method = load(self._step.assignment.method)
        return method.merge(inputs, self._parameters, *known.method).to("cpu").reshape(-1)

    def _copies_equal_inputs(self, known: Known) -> bool:
        """Say whether equal inputs are the answer: no task vector, or an average.

        An average by coefficients that depend on the whole tensor is a copy where all of it is
        equal; where only a block is, the coefficients need not add up to 1.
        """
        if self._subtracts:
            return True
        if known.surveyed:
            return known.all_equal
        return bool(getattr(self._parameters, "normalize", True))

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        rounded = values.to(self._out_dtype)
        if not _surely_finite(rounded) and not bool(torch.isfinite(rounded).all()):
            if self._keep:
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

    def _seed(self, expert: int) -> int:
        source = f"{self._inputs.seed}\n{self._step.name}\n{self._inputs.expert_digests[expert]}"
        return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "little")


def piece_of(step: Step) -> tuple[int, tuple[int, ...]]:
    """Return how many entries must stay together in a block, and a block's shape."""
    parameters, shape = step.assignment.parameters, step.target.shape
    merged = step.treatment is Treatment.MERGE and parameters is not None
    if not merged or parameters is None or (parameters.blockwise and not parameters.row_blocks):
        return 1, (-1,)
    if parameters.blockwise and len(shape) > 1:
        return max(1, prod(shape[1:])), (-1, *shape[1:])
    return max(1, step.target.numel), shape


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
