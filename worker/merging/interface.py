"""What the engine hands to a merge method, one block of a tensor at a time, and what it takes back.

A method is `merge(inputs: MergeInputs, parameters: P) -> torch.Tensor` in
`worker/merging/methods/{name}.py`. It returns float32 of the block's shape: in the space "weights"
the merged block, in the space "task_vectors" the merged task vector before λ. A method that is a
linear combination of what `merge` would get is

    coefficients(weights: tuple[float, ...], parameters: P) -> Sequence[float] | None

instead, and the engine combines as it reads; where it returns None, `merge` is called.

Reading, subtracting the base, `base + λ·merged`, dtypes, ties, tensors equal everywhere and
those that a spectral method does not take are the engine's. A block is the tensor, or where the
method streams tensors of its shape a flat piece of it (whole rows, if it asks for them).

A method that must know something of the whole tensor before it can merge any block of it (the
experts' Gram matrix, a threshold) has beside `merge` a function

    survey(about: About, parameters: P, finished: Survey | None) -> Survey | S

that returns the next survey to make, first with `finished` None and then with each one joined
over all blocks, and at last, as it is not a Survey, what `merge` and `coefficients` take as a third
argument. A survey is read block by block; blocks are joined in order, so that sums are the same on
any number of threads. With `parameters.whole_model` one survey goes over all tensors that the
method merges. A method whose parameters say `of_sum` gets, in surveys too, the task vectors'
weighted sum and inner products, and no expert's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from worker.merging.linalg.inner_products import add_inner_products
from worker.merging.linalg.sums import weighted_sum

T = TypeVar("T")


@dataclass(frozen=True)
class MergeWarning:
    """Something the merge got through that a person should know; `code` is stable."""

    code: str
    message: str


@dataclass
class MergeInputs:
    """A block's inputs; a method reads them, and adds to diagnostics, counts and warnings only.

    Attributes:
        name: the tensor's name, for messages.
        base: float32, the block's shape; None where the merge has no base.
        tensors: float32 (experts, *shape), in the request's order: task vectors (expert − base)
            or the experts' weights, as the method's `space` says. Not to be written to. With the
            method's `of_sum` their weighted sum alone, (1, *shape).
        weights: the merging weights, one an expert.
        unit_roundoff: that of the coarsest dtype in which base and experts are stored.
        seed: expert index -> 64 bits from recipe seed, tensor name and the expert's digest, so
            that draws do not depend on order, blocks or devices.
        inner_products: with `of_sum` those of the task vectors, the upper triangle, float64.
        start: the place of the block's first entry in the tensor, counted row by row; where a
            survey goes over the whole model, in all its tensors one after the other.
        diagnostics: filled by the method with what JSON can carry, the same for every block.
        counts: numbers of entries, which the engine adds up over the blocks.
        warnings: filled by the method.
        shared: where results are kept that a block's merges at several points of a sweep have in
            common; None where there is one merge only.
    """

    name: str
    base: torch.Tensor | None
    tensors: torch.Tensor
    weights: tuple[float, ...]
    unit_roundoff: float
    seed: Callable[[int], int]
    inner_products: NDArray[np.float64] | None = None
    start: int = 0
    diagnostics: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[MergeWarning] = field(default_factory=list)
    shared: dict[Hashable, Any] | None = None

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` makes of the block: in a sweep once for all points that ask by `key`.

        What is returned is shared, so it must not be written to. `key` holds all parameters that
        it depends on.
        """
        if self.shared is None:
            return make()
        if key not in self.shared:
            self.shared[key] = make()
        found: T = self.shared[key]
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """The block's: of a tensor that is merged whole, the tensor's."""
        return tuple(self.tensors.shape[1:])

    def summed(self) -> MergeInputs:
        """Return them as a method with `of_sum` gets them, given each expert's task vector."""
        products = np.zeros((len(self.tensors), len(self.tensors)))
        add_inner_products(self.tensors.cpu(), products)
        total = weighted_sum(self.tensors, self.weights, normalize=False)
        return replace(self, tensors=total[None], inner_products=products)

    def count(self, name: str, entries: int) -> None:
        """Add `entries` to the count of that name."""
        self.counts[name] = self.counts.get(name, 0) + entries


@dataclass
class About:
    """What is known of a tensor (or, with `whole_model`, of all) before it is read.

    Attributes:
        name: the tensor's name, for messages; that of the first where there are several.
        shape: the tensor's; that of all entries in a row where there are several.
        weights: the merging weights, one an expert.
        diagnostics: filled by `survey` with what JSON can carry.
        warnings: filled by `survey`.
    """

    name: str
    shape: tuple[int, ...]
    weights: tuple[float, ...]
    diagnostics: dict[str, Any] = field(default_factory=dict)
    warnings: list[MergeWarning] = field(default_factory=list)

    @property
    def experts(self) -> int:
        """How many experts there are."""
        return len(self.weights)


class Survey(ABC):
    """What one reading of a tensor, before it is merged, gathers from its blocks.

    Once joined it must not change: in a sweep it may be handed to `survey` for several points.
    """

    inner_products: NDArray[np.float64] | None = None
    """Of a survey that asks for the experts' inner products alone: what they are to be added to,
    the upper triangle, float64. Then the engine may add them as it reads, and not call `add`."""

    @property
    def question(self) -> Hashable | None:
        """What it asks of the blocks; of a sweep's surveys that ask the same, one is made.

        None where that cannot be told: then every point makes its own.
        """
        return None

    @abstractmethod
    def add(self, inputs: MergeInputs) -> None:
        """Take in the next block."""

    @abstractmethod
    def join(self, later: Self) -> None:
        """Take in what another survey of the same kind gathered from the blocks after these."""


class Merge(Protocol):
    """`merge` of a method's module; `parameters` is of the catalogue's class."""

    def __call__(self, inputs: MergeInputs, parameters: Any, *known: Any) -> torch.Tensor:
        """Return the merged block: float32, the shape of one expert's."""
        ...


class Coefficients(Protocol):
    """`coefficients` of a method's module, whose merge is a linear combination."""

    def __call__(
        self, weights: tuple[float, ...], parameters: Any, *known: Any
    ) -> Sequence[float] | None:
        """Return cᵢ of Σ cᵢxᵢ over what `merge` gets; None where it is not one."""
        ...


class NextSurvey(Protocol):
    """`survey` of a method's module."""

    def __call__(self, about: About, parameters: Any, finished: Any) -> Any:
        """Return the next survey, or what `merge` must know."""
        ...


@dataclass(frozen=True)
class Method:
    """A method's functions; `survey` is None where it needs to know nothing beforehand.

    Of one that is always a linear combination there are `coefficients` only.
    """

    nonlinear: Merge | None
    survey: NextSurvey | None = None
    coefficients: Coefficients | None = None

    def linear(
        self, weights: tuple[float, ...], parameters: Any, *known: Any
    ) -> Sequence[float] | None:
        """Return the coefficients of the merge; None where it is no linear combination."""
        if self.coefficients is None:
            return None
        return self.coefficients(weights, parameters, *known)

    def merge(self, inputs: MergeInputs, parameters: Any, *known: Any) -> torch.Tensor:
        """Return the merged block: float32, the shape of one expert's."""
        coefficients = self.linear(inputs.weights, parameters, *known)
        if coefficients is not None:
            return weighted_sum(inputs.tensors, coefficients, normalize=False)
        assert self.nonlinear is not None
        return self.nonlinear(inputs, parameters, *known)

    def __call__(self, inputs: MergeInputs, parameters: Any) -> torch.Tensor:
        """Return the merge of a whole tensor at once, surveys included, given every expert's."""
        if parameters.of_sum:
            inputs = inputs.summed()
        if self.survey is None:
            return self.merge(inputs, parameters)
        about = About(inputs.name, tuple(inputs.tensors.shape[1:]), inputs.weights)
        known = self.survey(about, parameters, None)
        while isinstance(known, Survey):
            known.add(inputs)
            known = self.survey(about, parameters, known)
        inputs.diagnostics.update(about.diagnostics)
        inputs.warnings.extend(about.warnings)
        return self.merge(inputs, parameters, known)
