"""What a merge method is: the whole contract between a method and the engine.

A method is a function of two arguments: `x`, what is known of the tensor, and `p`, the parameters
of its class in the catalogue. It yields the reductions that it needs, gets them back finished, and
returns a combine:

    @merges(Ties)
    def ties(x: Subject, p: Ties) -> Steps:
        kept = max(1, math.floor(p.density * x.entries))
        cuts = [cut for (cut,) in (yield from magnitude_cuts([kept - 1]))]
        return Elected(x.weights, cuts, normalize=p.normalize)

A **reduction** is what must be known of a whole tensor before any block of it can be merged: inner
products, a magnitude cut, Gram matrices. It is a frozen value: where the points of a sweep, or
several methods of one run, ask for equal reductions, one is made. A **combine** maps a block's
inputs to the merged block.

A method whose class says `needs_calibration` also gets **statistics** of the tensor, which the
worker gathered on each expert's speech before the merge: `x.statistics.read(start, stop)` is one
more input, an expert a row, from which a reduction or a combine reads what it wants. It is None
for a tensor of which there are none.

The engine cuts tensors into blocks, reads them, subtracts the base, adds λ times the merge to it,
rounds, writes, and copies tensors that are equal in all inputs. λ, the base, dtypes, devices and
rounding never reach a method. A spectral method sees every matrix upright, (long, short): the
engine transposes the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from app.contract.catalogue import MethodParameters
from worker.merging.linalg.ops import inner_products, weighted_sum

State = dict[str, Any]
"""What a reduction has gathered so far: arrays and tensors by name."""


Factors = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


def _no_factors(expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    raise ValueError(f"The task matrix of expert {expert} has no factors.")


@dataclass
class Notes:
    """What a method has to say: `diagnostics` hold what JSON can carry."""

    diagnostics: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    def count(self, name: str, number: int) -> None:
        """Add to a count, which the engine sums over the tensor's blocks."""
        self.counts[name] = self.counts.get(name, 0) + number

    def warn(self, code: str, message: str) -> None:
        """Add a warning that a person should read; its code is stable."""
        self.warnings.append((code, message))


class Statistics(ABC):
    """What was gathered of a tensor on the experts' calibration sets."""

    @property
    @abstractmethod
    def norms(self) -> tuple[float, ...]:
        """Each expert's Euclidean norm over all tensors, positive."""

    @abstractmethod
    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return entries of each expert's statistic, (experts, stop − start), float32.

        Squared gradients have the tensor's entries; a Gram matrix of a layer's inputs has as many
        rows and columns as the tensor has columns.
        """


@dataclass(frozen=True)
class Subject:
    """What is known of a tensor before it is read.

    Attributes:
        name: for messages; the first tensor's where reductions go over the whole model.
        shape: of a matrix in a spectral method (long, short); of the whole model (entries,).
        weights: the merging weights, one an expert.
        unit_roundoff: that of the coarsest dtype in which base and experts are stored.
        transposed: whether a spectral method sees the transpose of what is stored; square
            matrices are transposed too.
        statistics: if the method asks for any and the tensor has them.
        thin: the rank of a task matrix that is a product of factors of low rank, by expert.
        factors: such an expert -> L and R, float64, of its task matrix L·R.
        seed: expert -> 64 bits from the recipe's seed, the tensor's name and the expert's digest.
        notes: for diagnostics and warnings.
    """

    name: str
    shape: tuple[int, ...]
    weights: tuple[float, ...]
    unit_roundoff: float = 2.0**-24
    transposed: bool = False
    statistics: Statistics | None = None
    thin: Mapping[int, int] = field(default_factory=dict, compare=False)
    factors: Factors = field(default=_no_factors, compare=False)
    seed: Callable[[int], int] = hash
    notes: Notes = field(default_factory=Notes, compare=False)

    @property
    def experts(self) -> int:
        """The number of experts."""
        return len(self.weights)

    @property
    def entries(self) -> int:
        """The number of entries of one expert."""
        return prod(self.shape)


class Block:
    """A part of a tensor, read. Nobody may write to it.

    Attributes:
        start: the position of the first entry in the tensor, or in the whole model.
        base: float32, (*shape); None without a base.
        equal: whether all inputs hold the same bits; always False for a single input.
        rows: the engine's buffer: base and experts (or their sum) as flat rows.
    """

    def __init__(
        self,
        weights: tuple[float, ...],
        experts: torch.Tensor | None,
        *,
        base: torch.Tensor | None = None,
        total: torch.Tensor | None = None,
        products: NDArray[np.float64] | None = None,
        start: int = 0,
        equal: bool = False,
        rows: torch.Tensor | None = None,
        resident: bool = False,
    ) -> None:
        self.start, self.base, self.equal, self.rows = start, base, equal, rows
        self._weights, self._experts = weights, experts
        self._total, self._products = total, products
        self._kept: dict[Hashable, torch.Tensor] | None = {} if resident else None

    @property
    def tensors(self) -> torch.Tensor:
        """Float32, (experts, *shape): task vectors, or weights if that is the method's space.

        Flat, or whole rows if the method works by rows. ValueError for a method `of_sum`.
        """
        if self._experts is None:
            raise ValueError("A method of_sum gets the sum alone, not each expert.")
        return self._experts

    @property
    def sum(self) -> torch.Tensor:
        """Σ wᵢxᵢ, float32, (*shape)."""
        if self._total is None:
            self._total = weighted_sum(self.tensors, self._weights)
        return self._total

    def once(self, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return `make()`, made once under its key if the block stays in memory."""
        if self._kept is None:
            return make()
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @property
    def products(self) -> NDArray[np.float64]:
        """⟨xᵢ, xⱼ⟩ over the block, float64, the upper triangle."""
        if self._products is None:
            self._products = inner_products(self.tensors)
        return self._products


@dataclass(frozen=True)
class Reduction(ABC):
    """What one reading of a tensor finds out. Subclasses are frozen dataclasses of what they ask.

    Blocks are added in order; parts of a tensor may be read in parallel, and are joined in order,
    so that sums do not depend on the number of threads.
    """

    products_alone: ClassVar[bool] = False
    """Whether it looks at `Block.products` alone, which need no entries in memory."""
    storable: ClassVar[bool] = False
    """Whether `packed` and `unpacked` can keep the result on disk for later merges."""
    depends_on_weights: ClassVar[bool] = False
    """Whether the result depends on the merging weights."""

    @abstractmethod
    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Add a block to the state, which is empty at first."""

    def join(self, state: State, later: State) -> None:
        """Add the state of later blocks. Unless overridden, arrays of one name are summed."""
        for name, value in later.items():
            if name in state:
                state[name] += value
            else:
                state[name] = value

    def finish(self, state: State, subject: Subject) -> Any:
        """Return what the method gets. It may be shared: nobody may change it."""
        return state

    def packed(self, result: Any) -> dict[str, torch.Tensor]:
        """Return the result as tensors by name."""
        raise NotImplementedError

    def unpacked(self, arrays: Mapping[str, torch.Tensor], subject: Subject) -> Any:
        """Return the result that `packed` gave these tensors."""
        raise NotImplementedError


class Combine(ABC):
    """Maps blocks to merged blocks."""

    @abstractmethod
    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the merged block, float32, the shape of one expert's."""


Steps = Generator[Reduction | tuple[Reduction, ...], Any, Combine]
"""What a method that yields reductions returns. A tuple of them takes one reading."""
Method = Callable[[Subject, Any], Combine | Steps]
M = TypeVar("M", bound=Method)

METHODS: dict[str, Method] = {}


def merges(parameters: type[MethodParameters]) -> Callable[[M], M]:
    """Register the function below as the method of these parameters."""

    def register(method: M) -> M:
        METHODS[parameters.name] = method
        return method

    return register
