"""The blocks of one tensor: read, checked, the base subtracted, merged by the method, rounded.

Everything that is the same for all methods is here, and nowhere else: the base, λ, dtypes, inputs
that are all equal, tensors that a spectral method does not take, NaN and infinity.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from app.contract.errors import NonFiniteInputError, OutputOverflowError
from app.contract.tensors import UNIT_ROUNDOFFS
from app.planning.cost import BLOCK_ENTRIES, RESIDENT_ENTRIES
from app.planning.plan import Step, Treatment
from worker.merging.engine.branches import Branch, naming
from worker.merging.engine.reading import DTYPES, TensorReader
from worker.merging.engine.scaling import scaled
from worker.merging.engine.scratch import Scratch
from worker.merging.interface import MergeInputs, Survey
from worker.merging.kernels import blocks
from worker.merging.kernels.combining import Combination, combine_rows
from worker.merging.kernels.library import ALIGNED
from worker.merging.kernels.reading import ReadError, Sources
from worker.merging.linalg.inner_products import Doubles, add_inner_products
from worker.merging.methods import load


@dataclass(frozen=True)
class Inputs:
    """The open checkpoints of a merge, and what of the recipe every tensor needs."""

    base: TensorReader | None
    experts: tuple[TensorReader, ...]
    expert_digests: tuple[str, ...]
    weights: tuple[float, ...]
    seed: int
    device: torch.device
    points: tuple[str, ...] = ("",)
    """What errors call the outputs: the points of a sweep."""

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


_SCRATCH, _RESULTS = Scratch(), Scratch()
# Entries of all outputs of a combination that are made before they are written.
_RESULT_ENTRIES = 2**22


def _buffer(entries: int) -> torch.Tensor:
    """Return room for blocks; whole tensors, of methods that do not stream, get their own."""
    return torch.empty(entries) if entries > RESIDENT_ENTRIES else _SCRATCH.take(entries)


class Blocks:
    """One step's tensor: its readers, its method, and buffers that all its blocks share.

    `inner_products` are those of the task vectors of what was merged so far, the upper triangle;
    None where there are none, where a survey has told them, and where a spectral method tells more.

    `branches` are to be merged: the step's own parameters serve for what is the same in all. What
    is read stays in memory for later surveys and the merge if it is small and `again` says that it
    will be asked for again.
    """

    def __init__(
        self,
        step: Step,
        inputs: Inputs,
        origin: int = 0,
        branches: Sequence[Branch] = (),
        *,
        again: bool = False,
    ) -> None:
        self._step, self._inputs, self._origin = step, inputs, origin
        self._branches = branches
        parameters = step.assignment.parameters
        self._keep = step.treatment is Treatment.KEEP
        subtracts = parameters is not None and parameters.space == "task_vectors"
        merged = step.treatment is Treatment.MERGE and parameters is not None
        self._spectral = merged and parameters is not None and parameters.spectral
        self._of_sum = merged and parameters is not None and parameters.of_sum
        wanted = parameters is not None and parameters.base != "unused"
        has_base = wanted and not self._keep and inputs.base is not None
        counted = parameters is not None and parameters.counts_base
        self._uses_base = has_base and not counted
        self._subtracts = self._uses_base and subtracts
        self._out_dtype = DTYPES[step.target.dtype]
        self._readers = [inputs.reference] if self._keep else list(inputs.experts)
        if has_base and inputs.base is not None:
            self._readers.insert(0, inputs.base)
        places = [reader.place(step.name) for reader in self._readers]
        self._sources = Sources(places, subtract=self._subtracts)
        self._combinations: list[Sequence[float] | None] | None = None
        piece, self._block_shape = piece_of(step)
        self.width = piece * max(1, BLOCK_ENTRIES // piece)
        # What of a block is in memory: all inputs, or the base and the sum of the task vectors.
        self._count = 2 if self._of_sum else len(self._readers)
        entries = self._count * step.target.numel
        self._stays = again and entries <= RESIDENT_ENTRIES
        self._prepared: dict[int, bool] = {}
        if not self._stays:
            entries = self._count * min(self.width, step.target.numel)
        self._buffer = _buffer(entries)
        whole = self._spectral and len(step.target.shape) == 2
        described = self._subtracts and not whole
        self.inner_products = self._room_for_products() if described else None
        # One a branch, in their order: a method notes in it what it has to say.
        self.merge_inputs = [
            MergeInputs(
                name=step.name,
                base=None,
                tensors=torch.empty(0),
                weights=inputs.merged_weights(step),
                unit_roundoff=self._unit_roundoff(),
                seed=self._seed,
            )
            for _ in range(max(1, len(branches)))
        ]

    def survey(self, start: int, stop: int, surveys: Sequence[Survey]) -> bool:
        """Add the entries `start` to `stop` to surveys; say whether they are the same in all."""
        grams = [s.inner_products for s in surveys if s.inner_products is not None]
        if len(grams) == len(surveys) and self._uses_base == self._subtracts:
            return self._add_inner_products(start, stop, grams)
        gram = self._room_for_products() if self._of_sum else None
        rows, equal = self._task_vectors(start, stop, gram)
        self._hand_over(start, rows, gram)
        for survey in surveys:
            survey.add(self.merge_inputs[0])
        return equal

    def _add_inner_products(self, start: int, stop: int, grams: Sequence[Doubles]) -> bool:
        """Add what the experts' inner products are as they are read; say whether all are equal."""
        gram = np.zeros_like(grams[0])
        if self._stays:
            _, equal = self._task_vectors(start, stop, gram)
        else:
            with self._reading():
                found = self._sources.add_inner_products(start, stop, gram)
            equal = self._checked(found, start, stop)
        for total in grams:
            total += gram
        return equal

    def merged(self, start: int, stop: int) -> Iterator[tuple[Sequence[int], int, torch.Tensor]]:
        """Yield outputs by number, with a place and the entries there, flat, as they are stored.

        Together they are the entries `start` to `stop` of every output. They may be overwritten
        when the next are asked for.
        """
        if self._keep:
            everything = range(len(self._inputs.points))
            yield everything, start, self._rounded(self._read(start, stop)[0])
            return
        if self._combinations is None:
            self._combinations = [self._coefficients(branch) for branch in self._branches]
            if all(branch.known.described for branch in self._branches):
                self.inner_products = None
        coefficients = self._combinations
        if len(coefficients) == 1 and coefficients[0] and start not in self._prepared:
            yield from self._combined(self._branches[0], coefficients[0], start, stop, None)
            return
        # Where there was a survey, it has taken them in.
        handed = self._of_sum and not any(branch.known.surveyed for branch in self._branches)
        gram = self._room_for_products() if handed else self.inner_products
        rows, equal = self._task_vectors(start, stop, gram)
        handed_over = False
        for branch, inputs, linear in zip(
            self._branches, self.merge_inputs, coefficients, strict=True
        ):
            if linear:
                yield from self._combined(branch, linear, start, stop, rows)
                continue
            averaged = equal and self._copies_equal_inputs(branch)
            rest: dict[float, Sequence[int]] = {}
            for scale, numbers in branch.outputs.items():
                if not averaged and not (self._subtracts and scale == 0.0):
                    rest[scale] = numbers
                    continue
                with naming(self._inputs.points, numbers):
                    copied = self._rounded(rows[0])
                yield numbers, start, copied
            if not rest:
                continue
            if not handed_over:
                self._hand_over(start, rows, gram if handed else None)
                handed_over = True
            with naming(self._inputs.points, branch.numbers):
                merged = self._call(inputs, branch)
            for numbers, place, values in self._outputs(rows[0], merged, rest):
                yield numbers, start + place, values

    def _outputs(
        self, base: torch.Tensor, merged: torch.Tensor, outputs: Mapping[float, Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], int, torch.Tensor]]:
        """Yield outputs by number, with a place in the block and the entries there, rounded."""
        if not self._subtracts:
            numbers = [number for same in outputs.values() for number in same]
            with naming(self._inputs.points, numbers):
                rounded = self._rounded(merged)
            yield numbers, 0, rounded
            return
        for place, scales, rows, finite in scaled(base, merged, list(outputs)):
            chosen = {scale: outputs[scale] for scale in scales}
            yield from self._stored(chosen, rows, finite, place)

    def _stored(
        self, outputs: Mapping[float, Sequence[int]], rows: torch.Tensor, finite: bool, place: int
    ) -> Iterator[tuple[Sequence[int], int, torch.Tensor]]:
        """Yield outputs, a row each, as they are stored; `finite` says that the rows are."""
        results = rows.to(self._out_dtype)
        if not finite or (results is not rows and not _all_finite(results)):
            for row, numbers in zip(rows, outputs.values(), strict=True):
                with naming(self._inputs.points, numbers):
                    self._rounded(row)
        for row, numbers in zip(results.unbind(), outputs.values(), strict=True):
            yield numbers, place, row

    def _combined(
        self,
        branch: Branch,
        coefficients: Sequence[float],
        start: int,
        stop: int,
        rows: torch.Tensor | None,
    ) -> Iterator[tuple[Sequence[int], int, torch.Tensor]]:
        """Yield what `merged` does, of a linear combination: of `rows`, or of what is read."""
        outputs = branch.outputs if self._subtracts else {1.0: branch.numbers}
        scales = list(outputs)
        what = Combination(
            coefficients,
            scales,
            subtracted=self._subtracts,
            copy_equal=not self._subtracts and self._copies_equal_inputs(branch),
        )
        width = max(1, _RESULT_ENTRIES // len(scales) // ALIGNED) * ALIGNED
        for first in range(start, stop, width):
            last = min(first + width, stop)
            results = _RESULTS.take(len(scales) * (last - first)).view(len(scales), -1)
            if rows is None:
                with self._reading():
                    found = self._sources.combine(first, what, results, self.inner_products)
                self._checked(found, first, last)
                finite = bool(found & blocks.RESULT_FINITE)
            else:
                finite = combine_rows(rows, first - start, what, results)
            yield from self._stored(outputs, results, finite, first)

    def _task_vectors(
        self, start: int, stop: int, gram: Doubles | None = None
    ) -> tuple[torch.Tensor, bool]:
        """Return the base, if there is one, and under it task vectors, or whole experts.

        Also whether all that was read is equal, which is never said of one tensor alone. To `gram`
        the inner products are added, if it is there.
        """
        rows = self._rows(start, stop)
        if start in self._prepared:
            if gram is not None:
                # Of a sum they cannot be told again: whoever asks twice is refused there.
                add_inner_products(rows[int(self._subtracts) :], gram)
            return rows, self._prepared[start]
        with self._reading():
            found = self._read_block(start, rows, gram)
        equal = self._checked(found, start, stop)
        if self._stays:
            self._prepared[start] = equal
        return rows, equal

    def _read_block(self, start: int, rows: torch.Tensor, gram: Doubles | None) -> int:
        if not self._of_sum:
            return self._sources.read(start, rows, gram)
        what = Combination(self.merge_inputs[0].weights, subtracted=True, apart=True)
        found = self._sources.combine(start, what, rows, gram)
        if found & blocks.FINITE and not found & blocks.RESULT_FINITE:
            raise OutputOverflowError(
                f"{self._step.name}: the weighted sum of the task vectors does not fit float32; "
                "choose smaller weights."
            )
        return found

    def _room_for_products(self) -> Doubles:
        experts = len(self._inputs.experts)
        return np.zeros((experts, experts))

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        count, width = self._count, stop - start
        first = count * start if self._stays else 0
        return self._buffer[first : first + count * width].view(count, width)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        """Return the entries as they are."""
        rows = torch.empty(len(self._readers), stop - start)
        places = [reader.place(self._step.name) for reader in self._readers]
        with self._reading():
            Sources(places, subtract=False).read(start, rows)
        return rows

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn a read's failure into the error that names file and tensor."""
        try:
            yield
        except ReadError as error:
            if error.code == errno.ENOMEM:
                raise MemoryError from None
            raise self._readers[error.number].failed(self._step.name, error.code) from None

    def _checked(self, found: int, start: int, stop: int) -> bool:
        """Refuse what is not finite; say whether all inputs are equal, never of one alone."""
        if not found & blocks.FINITE:
            self._refuse_non_finite(start, stop)
        return bool(found & blocks.EQUAL) and len(self._readers) > 1

    def _coefficients(self, branch: Branch) -> Sequence[float] | None:
        """Return those of a merge that is a linear combination."""
        weights = self.merge_inputs[0].weights
        if self._step.treatment is Treatment.MEAN:
            return [weight / len(weights) for weight in weights]
        method = load(self._step.assignment.method)
        return method.linear(weights, branch.parameters, *branch.known.method)

    def _hand_over(self, start: int, rows: torch.Tensor, gram: Doubles | None) -> None:
        """Make the block, and if it is there what is known of all experts, the method's inputs."""
        base, tensors = (rows[0], rows[1:]) if self._uses_base else (None, rows)
        # Streams of entries stay where files are read: the way to a GPU is longer than the work.
        device = self._inputs.device if self._spectral else torch.device("cpu")
        shape = self._block_shape
        base = None if base is None else base.view(shape).to(device)
        tensors = tensors.view(len(tensors), *shape).to(device)
        shared: dict[Hashable, Any] | None = {} if len(self.merge_inputs) > 1 else None
        for inputs in self.merge_inputs:
            inputs.base, inputs.tensors, inputs.shared = base, tensors, shared
            inputs.start, inputs.inner_products = self._origin + start, gram

    def _call(self, inputs: MergeInputs, branch: Branch) -> torch.Tensor:
        """Return what the method makes of a block, flat and on the CPU."""
        method = load(self._step.assignment.method)
        return method.merge(inputs, branch.parameters, *branch.known.method).to("cpu").reshape(-1)

    def _copies_equal_inputs(self, branch: Branch) -> bool:
        """Say whether equal inputs are the answer: no task vector, or an average.

        An average by coefficients that depend on the whole tensor is a copy where all of it is
        equal; where only a block is, the coefficients need not add up to 1.
        """
        if self._subtracts:
            return True
        if branch.known.surveyed:
            return branch.known.all_equal
        return bool(getattr(branch.parameters, "normalize", True))

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        rounded = values.to(self._out_dtype)
        if not _all_finite(rounded):
            if self._keep:
                self._refuse(self._readers[0], values)
            raise OutputOverflowError(
                f"{self._step.name}: a merged value does not fit {self._step.target.dtype}; choose "
                "a wider output.dtype, or a smaller scaling_coefficient or weights."
            )
        return rounded

    def _refuse_non_finite(self, start: int, stop: int) -> None:
        """Say which input it was: it is read again, as task vectors have taken its place."""
        for reader, row in zip(self._readers, self._read(start, stop), strict=True):
            self._refuse(reader, row)

    def _refuse(self, reader: TensorReader, row: torch.Tensor) -> None:
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
    if step.treatment is not Treatment.MERGE or parameters is None:
        return 1, (-1,)
    if not parameters.streams(shape):
        return max(1, step.target.numel), shape
    if parameters.row_blocks and len(shape) > 1:
        return max(1, prod(shape[1:])), (-1, *shape[1:])
    return 1, (-1,)


def _all_finite(values: torch.Tensor) -> bool:
    if values.dtype is torch.float32:
        return blocks.all_finite(values)
    return bool(torch.isfinite(values).all())
