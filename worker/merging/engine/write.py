"""Writes the output files: every tensor at its planned place, in any order, journalled.

An attempt writes only into its own folder. What an earlier attempt finished is copied over,
checked against its digest on the way: the earlier attempt may still be alive and writing (into
its own files), or the machine may have lost pages that the journal vouches for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import xxhash

from app.contract.errors import OutputOverflowError
from app.contract.tensors import ITEM_SIZES
from app.planning.cost import BLOCK_ENTRIES
from app.planning.layout import OutputFile
from app.planning.plan import Step
from worker.merging import native
from worker.merging.engine.journal import JOURNAL_FILE, TENSORS_FOLDER, Entry, Journal, read_journal
from worker.merging.engine.read import DTYPES
from worker.merging.memory import Scratch

_COPY_BYTES = 2**22
# Parts of results that are made before they are written, and that a thread keeps room for.
_PARTS_AT_ONCE = 8
_SCRATCH = Scratch()

StretchDigest = xxhash.xxh3_128
"""The digest of a stretch's bytes, however they were cut into blocks."""


def scaled(
    base: torch.Tensor, merged: torch.Tensor, scales: Sequence[float]
) -> Iterator[tuple[int, Sequence[float], torch.Tensor, bool]]:
    """Yield base + λ·merged in parts: first entry, λ, a row for each λ, whether all is finite.

    The tensors are flat and float32. A part is overwritten when the next is asked for.
    """
    if merged.is_cuda:
        rows = base + torch.tensor(scales, device=base.device)[:, None] * merged
        yield 0, scales, rows, bool(torch.isfinite(rows).all())
        return
    for first in range(0, len(merged), BLOCK_ENTRIES):
        part = slice(first, min(first + BLOCK_ENTRIES, len(merged)))
        width = part.stop - first
        at_once = _PARTS_AT_ONCE * max(1, BLOCK_ENTRIES // width)
        for some in range(0, len(scales), at_once):
            chosen = scales[some : some + at_once]
            rows = _SCRATCH.take(len(chosen) * width).view(len(chosen), width)
            finite = native.add_scaled(base[part], chosen, merged[part], rows)
            yield first, chosen, rows, finite


def rounded(step: Step, values: torch.Tensor, *, finite: bool = False) -> torch.Tensor:
    """Return merged values in the output's dtype, on the CPU; OutputOverflowError if they overflow.

    `finite` says that the values are known to be finite.
    """
    dtype = DTYPES[step.target.dtype]
    result = values.to(dtype).cpu()
    if not (finite and dtype is torch.float32) and not all_finite(result):
        raise OutputOverflowError(
            f"{step.name}: a merged value does not fit {step.target.dtype}; choose "
            "a wider output.dtype, or a smaller scaling_coefficient or weights."
        )
    return result


def all_finite(values: torch.Tensor) -> bool:
    """Return whether no entry is NaN or infinite."""
    if values.dtype is torch.float32 and values.is_contiguous():
        return native.all_finite(values.view(-1))
    return bool(torch.isfinite(values).all())


class Writer(Protocol):
    """Where the merged tensors go; safe to use from several threads."""

    def write(self, name: str, start: int, values: torch.Tensor, digest: StretchDigest) -> None:
        """Keep entries from `start` on, already in the output dtype, and add them to `digest`."""
        ...

    def finished(self, entry: Entry) -> None:
        """Note that a stretch is complete."""
        ...

    def adopt(self, previous: Iterable[Path], wanted: set[tuple[str, int, int]]) -> list[Entry]:
        """Take over what earlier attempts finished of `wanted`; return the entries."""
        ...


class MemoryWriter:
    """Tensors in memory, by name; those that are there already are overwritten."""

    def __init__(self, steps: Sequence[Step], weights: dict[str, torch.Tensor]) -> None:
        for step in steps:
            dtype, shape = DTYPES[step.target.dtype], step.target.shape
            known = weights.get(step.name)
            if known is None or known.shape != torch.Size(shape) or known.dtype != dtype:
                weights[step.name] = torch.empty(shape, dtype=dtype)
        self._flat = {step.name: weights[step.name].view(-1) for step in steps}

    def write(self, name: str, start: int, values: torch.Tensor, digest: StretchDigest) -> None:
        """Keep entries from `start` on, and add them to `digest`."""
        flat = values.reshape(-1)
        self._flat[name][start : start + len(flat)] = flat
        digest.update(flat.view(torch.uint8).numpy().data)

    def finished(self, entry: Entry) -> None:
        """Do nothing: what is in memory does not survive."""

    def adopt(self, previous: Iterable[Path], wanted: set[tuple[str, int, int]]) -> list[Entry]:
        """Return nothing: there is nothing to take over."""
        return []


class OutputWriter:
    """The output files of one attempt, open for writing; safe to use from several threads."""

    def __init__(
        self, attempt: Path, files: Sequence[OutputFile], origin: Mapping[str, str]
    ) -> None:
        self._origin = origin
        self.folder = attempt / TENSORS_FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self._places = {tensor.name: tensor for file in files for tensor in file.tensors}
        self._descriptors: dict[str, int] = {}
        for file in files:
            path = self.folder / file.name
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self._descriptors[file.name] = descriptor
            if file.size_bytes:
                # Space is taken now, so that a full disk is noticed before the work is done.
                os.posix_fallocate(descriptor, 0, file.size_bytes)
            _write_all(descriptor, memoryview(file.header), 0)
        self._journal = Journal(attempt / JOURNAL_FILE, origin)

    def write(self, name: str, start: int, values: torch.Tensor, digest: StretchDigest) -> None:
        """Write entries from `start` on, already in the output dtype, and add them to `digest`."""
        place = self._places[name]
        view = values.contiguous().view(torch.uint8).numpy().data
        offset = place.start + start * ITEM_SIZES[place.dtype]
        _write_all(self._descriptors[place.file], view, offset)
        digest.update(view)

    def finished(self, entry: Entry) -> None:
        """Note in the journal that a stretch is complete."""
        self._journal.add(entry)

    def adopt(self, previous: Iterable[Path], wanted: set[tuple[str, int, int]]) -> list[Entry]:
        """Copy what earlier attempts finished of `wanted`; return the entries that were whole."""
        adopted: dict[tuple[str, int, int], Entry] = {}
        for attempt in previous:
            for entry in read_journal(attempt / JOURNAL_FILE, self._origin):
                if entry.key in adopted or entry.key not in wanted:
                    continue
                if self._copy(attempt / TENSORS_FOLDER, entry):
                    adopted[entry.key] = entry
                    self._journal.add(entry)
        return list(adopted.values())

    def close(self) -> None:
        """Close all files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._journal.close()

    def _copy(self, folder: Path, entry: Entry) -> bool:
        """Copy a stretch; return whether it is what its digest says."""
        place = self._places[entry.name]
        size = ITEM_SIZES[place.dtype]
        offset, end = place.start + entry.start * size, place.start + entry.stop * size
        digest = StretchDigest()
        try:
            source = os.open(folder / place.file, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            while offset < end:
                block = os.pread(source, min(_COPY_BYTES, end - offset), offset)
                if not block:
                    return False
                _write_all(self._descriptors[place.file], memoryview(block), offset)
                digest.update(memoryview(block))
                offset += len(block)
        finally:
            os.close(source)
        return digest.hexdigest() == entry.digest


def _write_all(descriptor: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)
