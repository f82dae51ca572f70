"""What the engine hands to a merge method, one tensor at a time, and what it takes back.

A method is `merge(inputs: MergeInputs, parameters: P) -> torch.Tensor` in
`worker/merging/methods/{name}.py`. It returns float32 of the tensor's shape: in the space
"weights" the merged tensor, in the space "task_vectors" the merged task vector before λ. Reading,
subtracting the base, `base + λ·merged`, dtypes, ties, tensors that are equal everywhere and those
that a spectral method does not take are the engine's.

A blockwise method may be handed a row block, or a flat piece, instead of the tensor. A method that
needs one sum over the whole tensor before it can merge any block (the experts' Gram matrix, say)
can join them by having in its module, beside `merge`, `accumulate(inputs, parameters) -> state`
for one block, states being summed by the engine with `+`, and a third argument `state` to `merge`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class MergeWarning:
    """Something the merge got through that a person should know; `code` is stable."""

    code: str
    message: str


@dataclass
class MergeInputs:
    """One tensor's inputs; a method reads them, and adds to `diagnostics` and `warnings` only.

    Attributes:
        name: the tensor's name, for messages.
        base: float32, the tensor's shape; None where the merge has no base.
        tensors: float32 (experts, *shape), in the request's order: task vectors (expert − base)
            or the experts' weights, as the method's `space` says. Not to be written to.
        weights: the merging weights, one an expert.
        unit_roundoff: that of the coarsest dtype in which base and experts are stored.
        generator: expert index -> a generator seeded from recipe seed, tensor name and the
            expert's digest, so that draws do not depend on order, blocks or devices.
        diagnostics: filled by the method with what JSON can carry.
        warnings: filled by the method.
    """

    name: str
    base: torch.Tensor | None
    tensors: torch.Tensor
    weights: tuple[float, ...]
    unit_roundoff: float
    generator: Callable[[int], torch.Generator]
    diagnostics: dict[str, Any] = field(default_factory=dict)
    warnings: list[MergeWarning] = field(default_factory=list)


class Merge(Protocol):
    """The one function of a method's module; `parameters` is of the catalogue's class."""

    def __call__(self, inputs: MergeInputs, parameters: Any) -> torch.Tensor:
        """Return the merged tensor or task vector: float32, the shape of one expert's."""
        ...
