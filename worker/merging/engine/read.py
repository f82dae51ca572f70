"""Reads stored tensors, whole or block by block, without mapping files into memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import FileIO
from types import TracebackType
from typing import Self

import numpy as np
import torch

from app.contract.errors import NonFiniteInputError, OutputOverflowError, SourceChangedError
from app.contract.tensors import ITEM_SIZES, UNIT_ROUNDOFFS, TensorHeader
from app.planning import cost
from app.planning.plan import Step, Treatment
from app.sources.adapters import stored_by_base
from app.sources.differences import SummedTensor
from worker.merging import native
from worker.merging.engine.forms import change_of, factors_of
from worker.merging.engine.statistics import Gathered
from worker.merging.linalg.sphere import Doubles
from worker.merging.memory import Scratch
from worker.merging.method import Block

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_SCRATCH = Scratch()


class TensorReader:
    """The tensors of one checkpoint's files, kept open; safe to use from several threads.

    Reads go through `pread`, not `mmap`: a file that is cut short while a merge runs then gives
    an error that names it, where a mapping would kill the process.
    """

    def __init__(
        self,
        label: str,
        tensors: Mapping[str, TensorHeader],
        open_file: Callable[[str], FileIO],
    ) -> None:
        self.label = label
        self.tensors = tensors
        self._open_file = open_file
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            parts = (part for header in self.tensors.values() for part in header.parts)
            for name in {part.file for part in parts}:
                handle = stack.enter_context(self._open_file(name))
                self._descriptors[name] = handle.fileno()
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.close()

    def read_bytes(
        self, name: str, start: int, stop: int, *, part: int = 0, pinned: bool = False
    ) -> torch.Tensor:
        """Return the stored bytes of entries `start` to `stop`, flat, uint8; pinned for a GPU."""
        header = self.tensors[name].parts[part]
        raw = torch.empty(
            (stop - start) * ITEM_SIZES[header.dtype], dtype=torch.uint8, pin_memory=pinned
        )
        self._fill(header, start, raw.numpy().data)
        return raw

    def added_place(self, name: str) -> native.Place | None:
        """Return where kernels read what is added entry by entry; None if nothing is."""
        header = self.tensors[name]
        if not isinstance(header, SummedTensor):
            return None
        added = header.difference
        return self._descriptors[added.file], DTYPES[added.dtype], added.start

    def change(self, name: str, start: int, stop: int) -> native.LowRank | None:
        """Return what is added to the stored entries `start` to `stop`; None if nothing is."""
        return change_of(self.tensors[name], self._read_part, start, stop)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of what is added to a matrix of the base, float64."""
        return factors_of(self.tensors[name], self._read_part)

    def values(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the stored entries `start` to `stop`, flat, float32."""
        return self._read_part(self.tensors[name].parts[0], start, stop)

    def _read_part(self, header: TensorHeader, start: int, stop: int) -> torch.Tensor:
        values = torch.empty(stop - start, dtype=DTYPES[header.dtype])
        self._fill(header, start, values.view(torch.uint8).numpy().data)
        return values.float()

    def place(self, name: str) -> native.Place:
        """Return where kernels read a tensor; of one that is made of others, it is the first."""
        header = self.tensors[name].parts[0]
        return self._descriptors[header.file], DTYPES[header.dtype], header.start

    def failed(self, name: str, code: int) -> SourceChangedError:
        """Return the error of a failed read: `code` is an errno, or 0 where the file ends."""
        return self._failed(self.tensors[name], code)

    def _failed(self, header: TensorHeader, code: int) -> SourceChangedError:
        file = header.file
        if isinstance(header, SummedTensor):
            file = f"{file} or {header.difference.file}"
        if code == 0:
            return self._changed(f"{file} ends within the tensor {header.name}")
        return self._changed(f"{file} cannot be read ({os.strerror(code)})")

    def _fill(self, header: TensorHeader, start: int, view: memoryview) -> None:
        offset = header.start + start * ITEM_SIZES[header.dtype]
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptors[header.file], [view[done:]], offset + done)
            except OSError as error:
                raise self._failed(header, error.errno or errno.EIO) from None
            if count == 0:
                raise self._failed(header, 0)
            done += count

    def _changed(self, what: str) -> SourceChangedError:
        return SourceChangedError(
            f"{self.label}: {what}; it was whole when the merge began. Restore it and retry."
        )


@dataclass(frozen=True)
class Inputs:
    """The open checkpoints of a merge, and what of the recipe every tensor needs."""

    base: TensorReader | None
    experts: tuple[TensorReader, ...]
    expert_digests: tuple[str, ...]
    weights: tuple[float, ...]
    seed: int
    device: torch.device
    statistics: Gathered = field(default_factory=dict)
    added_tokens: Mapping[int, str] = field(default_factory=dict)
    """Tokens that experts have beyond the reference's, by id."""

    @property
    def reference(self) -> TensorReader:
        """The base if there is one, else the first expert."""
        return self.base or self.experts[0]

    def read_by(self, reading: Reading) -> list[TensorReader]:
        """Return the checkpoints that a reading takes, in the order of its rows."""
        if reading.holders:
            return [self.experts[number] for number in reading.holders]
        if reading.keep:
            return [self.reference]
        based = reading.subtracts or reading.counts_base
        return [self.base, *self.experts] if based and self.base else list(self.experts)

    def unit_roundoff(self, name: str, reading: Reading) -> float:
        """Return that of the coarsest dtype in which they store a tensor.

        An adapter changes the base as it is stored: the base's rounding is in no task vector.
        """
        readers = self.read_by(reading)
        if all(stored_by_base(expert.tensors[name]) for expert in self.experts):
            return UNIT_ROUNDOFFS["F32"]
        return max(UNIT_ROUNDOFFS[reader.tensors[name].dtype] for reader in readers)


@dataclass(frozen=True)
class Reading:
    """Which inputs a step reads, and as what: equal for steps that can share one reading.

    Attributes:
        keep: whether the reference's tensor is kept as it is.
        holders: the experts whose equal tensors are kept instead, by position.
        subtracts: whether the base is subtracted from the experts.
        counts_base: whether the base is the first of the merged models.
        of_sum: whether of the task vectors only the weighted sum is kept in memory.
        own_weights: the experts' weights by rule; None: the recipe's.
        on_device: whether the blocks go to the job's device. Streams of entries never do: the way
            to a GPU takes longer than the work.
    """

    keep: bool = False
    holders: tuple[int, ...] = ()
    subtracts: bool = False
    counts_base: bool = False
    of_sum: bool = False
    on_device: bool = False
    own_weights: tuple[float, ...] | None = None

    @classmethod
    def of(cls, step: Step, *, has_base: bool) -> Reading:
        """Return a step's."""
        if step.treatment is Treatment.KEEP:
            return cls(keep=True)
        if step.added is not None:
            return cls(keep=True, holders=step.added.holders)
        parameters = step.assignment.parameters
        if step.treatment is Treatment.COPY or parameters is None:
            return cls()
        used = has_base and parameters.base != "unused"
        merged = step.treatment is Treatment.MERGE
        return cls(
            subtracts=used and not parameters.counts_base and parameters.space == "task_vectors",
            counts_base=used and parameters.counts_base,
            of_sum=merged and parameters.of_sum,
            on_device=merged and parameters.spectral,
            own_weights=step.assignment.weights,
        )

    def weights(self, inputs: Inputs) -> tuple[float, ...]:
        """Return the weights of what is merged."""
        weights = self.own_weights or inputs.weights
        return (1.0, *weights) if self.counts_base else weights


class TensorBlocks:
    """The blocks of one step's tensor. What is resident is read once; for one thread only."""

    def __init__(
        self, step: Step, inputs: Inputs, reading: Reading, start: int, stop: int, origin: int = 0
    ) -> None:
        """Blocks of entries `start` to `stop`.

        `origin` is where the tensor begins among those that are reduced together.
        """
        self.step, self._reading, self._origin = step, reading, origin
        self._weights = reading.weights(inputs)
        self._readers = inputs.read_by(reading)
        places = [reader.place(step.name) for reader in self._readers]
        listed = list(enumerate(self._readers))
        added = {n: place for n, one in listed if (place := one.added_place(step.name))}
        changes = {n: change for n, one in listed if (change := one.change(step.name, start, stop))}
        self._sources = native.Sources(
            places, subtract=reading.subtracts, added=added, changes=changes
        )
        self._as_stored = not added and not changes
        self._device = inputs.device if reading.on_device else torch.device("cpu")
        self._rows = 2 if reading.of_sum else len(self._readers)
        self.width = step.cut.piece * max(1, cost.BLOCK_ENTRIES // step.cut.piece)
        entries = self._rows * (
            step.target.numel if step.cut.resident else min(self.width, step.target.numel)
        )
        large = entries > cost.RESIDENT_ENTRIES
        self._buffer = torch.empty(entries) if large else _SCRATCH.take(entries)
        self._blocks: dict[int, Block] = {}

    def within(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield where the blocks between two positions begin and end."""
        for first in range(start, stop, self.width):
            yield first, min(first + self.width, stop)

    def is_read(self, start: int) -> bool:
        """Return whether the block that begins there is in memory."""
        return start in self._blocks

    def read(self, start: int, stop: int, *, products: bool = False) -> Block:
        """Return a block. With `products` its inner products are summed as it is read.

        A block that is not resident is overwritten by the next one. NonFiniteInputError names the
        input that holds NaN or infinity.
        """
        if start in self._blocks:
            return self._blocks[start]
        block = (
            self._read_on_gpu(start, stop)
            if self._device.type == "cuda"
            else self._read(start, stop, products)
        )
        if self.step.cut.resident:
            self._blocks[start] = block
        return block

    def products(self, start: int, stop: int) -> Block:
        """Return a block of which only the inner products are kept."""
        if self.step.cut.resident or self._reading.of_sum:
            return self.read(start, stop, products=True)
        found = self._room()
        with self._named():
            flags = self._sources.add_inner_products(start, stop, found)
        return self._block(start, stop, flags, None, products=found)

    def combine(
        self,
        start: int,
        stop: int,
        combination: native.Combination,
        results: torch.Tensor,
        products: Doubles | None,
    ) -> bool:
        """Fill `results` with a linear combination of the inputs as they are read.

        Inner products are added to `products`, if given. Return whether the results are finite.
        """
        with self._named():
            flags = self._sources.combine(start, combination, results, products)
        self._check(flags, start, stop)
        return bool(flags & native.RESULT_FINITE)

    def stored(self, start: int, stop: int) -> torch.Tensor:
        """Return the entries as they are, float32, a row an input."""
        rows = torch.empty(len(self._readers), stop - start)
        with self._named():
            self._sources.read(start, rows, subtracted=False)
        return rows

    def refuse_non_finite(self, start: int, stop: int) -> None:
        """Raise NonFiniteInputError if the inputs hold NaN or infinity between two positions."""
        for reader, row in zip(self._readers, self.stored(start, stop), strict=True):
            if bad := int((~torch.isfinite(row)).sum()):
                raise NonFiniteInputError(
                    f"{reader.label}: {self.step.name} holds NaN or infinity ({bad} of the "
                    f"{row.numel()} entries looked at); such a checkpoint cannot be merged."
                )

    def _read(self, start: int, stop: int, products: bool) -> Block:
        offset = self._rows * (start if self.step.cut.resident else 0)
        rows = self._buffer[offset : offset + self._rows * (stop - start)].view(self._rows, -1)
        found = self._room() if products or self._reading.of_sum else None
        with self._named():
            if not self._reading.of_sum:
                flags = self._sources.read(start, rows, found)
                return self._block(start, stop, flags, rows, products=found)
            what = native.Combination(self._weights, subtracted=True, apart=True)
            flags = self._sources.combine(start, what, rows, found)
        if flags & native.FINITE and not flags & native.RESULT_FINITE:
            raise OutputOverflowError(
                f"{self.step.name}: the weighted sum of the task vectors does not fit float32; "
                "choose smaller weights."
            )
        return self._block(start, stop, flags, rows, products=found)

    def _read_on_gpu(self, start: int, stop: int) -> Block:
        """Upload the inputs as they are stored; widen and subtract on the GPU.

        What a change is added to is made on the CPU.
        """
        if not self._as_stored:
            rows = self.stored(start, stop).to(self._device)
        else:
            stored = [
                reader.read_bytes(self.step.name, start, stop, pinned=torch.cuda.is_available())
                .view(DTYPES[reader.tensors[self.step.name].dtype])
                .to(self._device, non_blocking=True)
                for reader in self._readers
            ]
            rows = torch.stack([values.float() for values in stored])
        flags = native.FINITE * bool(torch.isfinite(rows).all())
        flags |= native.EQUAL * bool((rows == rows[0]).all())
        if self._reading.subtracts:
            rows[1:] -= rows[0].clone()
        return self._block(start, stop, flags, rows, sums=False)

    def _block(
        self,
        start: int,
        stop: int,
        flags: int,
        rows: torch.Tensor | None,
        *,
        products: Doubles | None = None,
        sums: bool = True,
    ) -> Block:
        self._check(flags, start, stop)
        base = experts = total = None
        if rows is not None:
            first = int(self._reading.subtracts)
            base = self._shaped(rows[0]) if first else None
            if self._reading.of_sum and sums:
                total = self._shaped(rows[1])
            else:
                experts = self._shaped(rows[first:])
        return Block(
            self._weights,
            experts,
            base=base,
            total=total,
            products=products,
            start=self._origin + start,
            equal=bool(flags & native.EQUAL) and len(self._readers) > 1,
            rows=rows,
            resident=self.step.cut.resident,
        )

    def _shaped(self, rows: torch.Tensor) -> torch.Tensor:
        """Return flat rows in the shape that the method sees."""
        cut = self.step.cut
        if not cut.by_rows:
            return rows
        shaped = rows.view(*rows.shape[:-1], -1, *self.step.target.shape[1:])
        return shaped.mT if cut.transposed else shaped

    def _check(self, flags: int, start: int, stop: int) -> None:
        if not flags & native.FINITE:
            self.refuse_non_finite(start, stop)

    def _room(self) -> Doubles:
        count = len(self._weights)
        return np.zeros((count, count))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn a failed read into the error that names file and tensor."""
        try:
            yield
        except native.ReadError as error:
            if error.code == errno.ENOMEM:
                raise MemoryError from None
            raise self._readers[error.number].failed(self.step.name, error.code) from None


def first_difference(
    name: str, readers: Sequence[TensorReader], start: int, stop: int
) -> tuple[torch.Tensor, TensorReader | None]:
    """Return the bytes in the first reader, and the first other one where they differ."""
    raw = readers[0].read_bytes(name, start, stop)
    for other in readers[1:]:
        if not torch.equal(raw, other.read_bytes(name, start, stop)):
            return raw, other
    return raw, None
