"""The reductions that methods share: what one reading of a tensor finds out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from app.planning.cost import THIN
from worker.merging import native
from worker.merging.combines import OfDirections, left_rows
from worker.merging.linalg.directions import Directions, Part
from worker.merging.linalg.ops import (
    eigen_of,
    eigen_of_product,
    eigh,
    flat,
    gram,
    mirror,
    product,
)
from worker.merging.linalg.orthogonal import Orthogonalization
from worker.merging.linalg.spectrum import Rounding, Spectrum, spectra_from
from worker.merging.linalg.sphere import symmetric
from worker.merging.method import Block, Reduction, State, Subject

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class InnerProducts(Reduction):
    """⟨xᵢ, xⱼ⟩ over the tensor: (experts, experts), float64, symmetric.

    The engine puts the norms and cosines that follow into the diagnostics.
    """

    products_alone: ClassVar[bool] = True
    storable: ClassVar[bool] = True

    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Add the block's."""
        state["gram"] = state.get("gram", 0.0) + block.products

    def finish(self, state: State, subject: Subject) -> Doubles:
        """Return the matrix."""
        return symmetric(state.get("gram", np.zeros((subject.experts, subject.experts))))

    def packed(self, result: Doubles) -> dict[str, torch.Tensor]:
        """Return the matrix."""
        return {"gram": torch.from_numpy(result)}

    def unpacked(self, arrays: Mapping[str, torch.Tensor], subject: Subject) -> Doubles:
        """Return the matrix."""
        found: Doubles = arrays["gram"].numpy()
        return found


class Stream(ABC):
    """Numbers to rank, made of a block: one flat tensor a stream. Frozen, equal by value."""

    magnitudes: ClassVar[bool] = False
    """Whether the numbers' magnitudes are ranked; else the numbers, without negative zeros."""
    counts_nonzero: ClassVar[bool] = False
    """Whether the histogram says how many numbers are not 0."""

    @abstractmethod
    def __call__(self, block: Block) -> Sequence[torch.Tensor]:
        """Return the block's numbers, float32."""


@dataclass(frozen=True)
class Sizes(Stream):
    """The magnitudes of each expert's entries."""

    magnitudes: ClassVar[bool] = True

    def __call__(self, block: Block) -> Sequence[torch.Tensor]:
        """Return the entries."""
        return list(flat(block.tensors))


@dataclass(frozen=True)
class Histogram(Reduction):
    """How many numbers of each stream lie in each of a few thousand buckets."""

    stream: Stream

    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Count the block's."""
        buckets = native.BUCKETS[self.stream.magnitudes]
        for number, values in enumerate(self.stream(block)):
            counts = state.setdefault(f"{number}", np.zeros(buckets, np.int64))
            native.count_buckets(values, counts, magnitudes=self.stream.magnitudes)
            if self.stream.counts_nonzero:
                state.setdefault("nonzero", np.zeros((), np.int64))
                state["nonzero"] += int(values.count_nonzero())

    def finish(self, state: State, subject: Subject) -> Counted:
        """Return the counts."""
        nonzero = int(state.pop("nonzero", 0))
        return Counted(self.stream, [state[f"{n}"] for n in range(len(state))], nonzero)


@dataclass(frozen=True)
class Counted:
    """A finished histogram, stream by stream, and how many numbers are not 0 if that is counted."""

    stream: Stream
    counts: Sequence[NDArray[np.int64]]
    nonzero: int = 0

    def largest(self, stream: int) -> float:
        """Return a number that none of the stream is larger than."""
        bucket, _ = self.place(stream, 0)
        return native.bucket_bounds(bucket, magnitudes=self.stream.magnitudes)[1]

    def place(self, stream: int, rank: int) -> tuple[int, int]:
        """Return the bucket of the number at a descending rank, and its rank in that bucket."""
        above = np.cumsum(self.counts[stream][::-1])
        index = int(np.searchsorted(above, rank, side="right"))
        bucket = len(above) - 1 - index
        return bucket, rank - (int(above[index - 1]) if index else 0)


@dataclass(frozen=True)
class Candidates(Reduction):
    """The numbers in given buckets, by stream, that are not 0: of zeros there may be very many."""

    stream: Stream
    buckets: tuple[tuple[int, ...], ...]

    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Keep the block's."""
        kind = self.stream.magnitudes
        for number, values in enumerate(self.stream(block)):
            for bucket in self.buckets[number]:
                low, high = native.bucket_bounds(bucket, magnitudes=kind)
                found = native.find_between(values, low, high, magnitudes=kind)
                state.setdefault(f"{number}/{bucket}", []).append(found)

    def join(self, state: State, later: State) -> None:
        """Take over the later blocks' numbers."""
        for name, found in later.items():
            state.setdefault(name, []).extend(found)

    def finish(self, state: State, subject: Subject) -> dict[tuple[int, int], NDArray[np.float32]]:
        """Return them by stream and bucket."""
        return {
            (number, bucket): torch.cat(state[f"{number}/{bucket}"]).numpy()
            for number, buckets in enumerate(self.buckets)
            for bucket in buckets
            if f"{number}/{bucket}" in state
        }


def order_statistics(
    counted: Counted, ranks: Sequence[int]
) -> Generator[Reduction, Any, list[list[float]]]:
    """Find the numbers at these descending ranks (0 is the largest); return a list a stream."""
    places = [[counted.place(s, rank) for rank in ranks] for s in range(len(counted.counts))]
    buckets = tuple(tuple(sorted({bucket for bucket, _ in found})) for found in places)
    numbers = yield Candidates(counted.stream, buckets)
    return [
        [_at(numbers.get((stream, bucket)), rank) for bucket, rank in found]
        for stream, found in enumerate(places)
    ]


def _at(numbers: NDArray[np.float32] | None, rank: int) -> float:
    """Return the number at a descending rank; zeros, which are left out, are the lowest."""
    if numbers is None or rank >= len(numbers):
        return 0.0
    ascending = len(numbers) - 1 - rank
    return float(np.partition(numbers, ascending)[ascending])


def magnitude_cuts(
    ranks: Sequence[int],
) -> Generator[Reduction, Any, list[list[float]]]:
    """Find each expert's magnitudes at these descending ranks; return a list an expert."""
    counted = yield Histogram(Sizes())
    return (yield from order_statistics(counted, ranks))


@dataclass(frozen=True)
class Spectra(Reduction):
    """The spectrum of each expert's task matrix."""

    storable: ClassVar[bool] = True

    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Add each expert's dᵢᵀdᵢ, unless its factors say as much."""
        add_base(state, block)
        for number, matrix in enumerate(block.tensors):
            if number not in subject.thin:
                add_gram(state, f"{number}", matrix)

    def finish(self, state: State, subject: Subject) -> TaskSpectra:
        """Return the spectra."""
        grams = {int(name): state.pop(name) for name in list(state) if name != "base"}
        problems = dict(zip(grams, eigh(list(grams.values())), strict=True))
        problems |= {number: eigen_of_product(*both) for number, both in self.products(subject)}
        spectra = spectra_from([problems[number] for number in sorted(problems)])
        return TaskSpectra(spectra, rounding_of(state, subject))

    def products(self, subject: Subject) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
        """Yield the matrices that are known as products, by number, with their factors."""
        for number in subject.thin:
            yield number, subject.factors(number)

    def packed(self, result: TaskSpectra) -> dict[str, torch.Tensor]:
        """Return the eigenproblems and the base's size."""
        rms = torch.tensor(result.rounding.base_rms, dtype=torch.float64)
        return {"base_rms": rms} | {
            f"{number}/{name}": array
            for number, spectrum in enumerate(result.spectra)
            for name, array in spectrum.eigen.arrays().items()
        }

    def unpacked(self, arrays: Mapping[str, torch.Tensor], subject: Subject) -> TaskSpectra:
        """Return the spectra."""
        problems: dict[int, dict[str, torch.Tensor]] = {}
        for name, array in arrays.items():
            number, _, part = name.partition("/")
            if part:
                problems.setdefault(int(number), {})[part] = array
        eigens = [eigen_of(problems[number]) for number in range(len(problems))]
        rms = float(arrays["base_rms"])
        rounding = Rounding(subject.unit_roundoff, rms, subject.shape)
        return TaskSpectra(spectra_from(eigens), rounding)


@dataclass(frozen=True, eq=False)
class TaskSpectra:
    """Spectra of task matrices, and the rounding of what they were computed from."""

    spectra: list[Spectrum]
    rounding: Rounding
    _directions: dict[tuple[int, ...], Directions] = field(default_factory=dict)

    def above(self, noise_floor: float) -> list[Spectrum]:
        """Return the spectra with their noise floors."""
        return [spectrum.above(self.rounding, noise_floor) for spectrum in self.spectra]

    def directions(self, ranks: Sequence[int]) -> Directions:
        """Return the first rᵢ directions of each expert: for equal ranks the same object."""
        key = tuple(ranks)
        if key not in self._directions:
            pairs = enumerate(zip(self.spectra, key, strict=True))
            parts = [Part.of(number, spectrum, rank) for number, (spectrum, rank) in pairs]
            self._directions[key] = Directions(self.rounding.shape, tuple(parts))
        return self._directions[key]


@dataclass(frozen=True)
class SumSpectrum(Spectra):
    """The spectrum of the sum Σ wᵢdᵢ alone."""

    depends_on_weights: ClassVar[bool] = True

    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Add the sum's Gram matrix, unless the factors of all say as much."""
        add_base(state, block)
        if not self._is_thin(subject):
            add_gram(state, "0", block.sum)

    def products(self, subject: Subject) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
        """Yield the sum's factors: those of all experts side by side."""
        if self._is_thin(subject):
            both = [subject.factors(number) for number in range(subject.experts)]
            pairs = zip(subject.weights, both, strict=True)
            left = torch.cat([weight * one for weight, (one, _) in pairs], dim=1)
            yield 0, (left, torch.cat([other for _, other in both]))

    def _is_thin(self, subject: Subject) -> bool:
        ranks = subject.thin.values()
        return len(ranks) == subject.experts and THIN * sum(ranks) <= min(subject.shape)


@dataclass(frozen=True)
class LeftGram(Reduction):
    """ÛᵀÛ of directions, float64, symmetric."""

    directions: Directions

    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Add the product of the block's rows of Û."""
        add_gram(state, "left", left_rows(self.directions, block))

    def finish(self, state: State, subject: Subject) -> torch.Tensor:
        """Return the matrix."""
        return mirror(state.pop("left"))


def orthogonal_sum(
    x: Subject, directions: Directions, strengths: torch.Tensor, how: Orthogonalization
) -> Generator[Reduction, Any, OfDirections]:
    """Return the combine orth(Û)·diag(strengths)·orth(V̂)ᵀ; note how much the directions overlap."""
    left = yield LeftGram(directions)
    x.notes.diagnostics.update(directions.interference(left, strengths))
    return OfDirections(directions, directions.orthogonal_sum(left, strengths, how))


def add_gram(state: State, name: str, matrix: torch.Tensor) -> None:
    """Add MᵀM, float64, the upper triangle, to the state."""
    state[name] = gram(matrix, state.get(name))


def add_product(state: State, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add LᵀR, float64, of float32 matrices to the state."""
    found = product(left.mT, right.double())
    state[name] = found.add_(state[name]) if name in state else found


def add_base(state: State, block: Block) -> None:
    """Add the base's squares to the state."""
    if block.base is not None:
        here = np.array([float(torch.linalg.vector_norm(block.base)) ** 2, block.base.numel()])
        state["base"] = state.get("base", 0.0) + here


def rounding_of(state: State, subject: Subject) -> Rounding:
    """Return the rounding of the stored weights, given the base's squares."""
    squares, entries = state.get("base", (0.0, 0))
    rms = math.sqrt(squares / entries) if entries else 0.0
    return Rounding(subject.unit_roundoff, rms, subject.shape)
