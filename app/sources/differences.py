"""Experts as differences: files that hold a fine-tuned checkpoint minus its base.

A difference has no config or tokenizer of its own: on its base it has the base's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from app.contract.tensors import TensorHeader
from app.sources.adapters import OF_BASE
from app.sources.key_prefixes import without_prefix

if TYPE_CHECKING:
    from app.sources.checkpoint import ResolvedCheckpoint


@dataclass(frozen=True)
class SummedTensor(TensorHeader):
    """A tensor that is the sum of two stored ones. File and offsets are the base's."""

    weight: TensorHeader
    difference: TensorHeader

    @property
    def parts(self) -> tuple[TensorHeader, ...]:
        """The base's tensor and the difference."""
        return self.weight, self.difference

    @property
    def size_bytes(self) -> int:
        """How many bytes are read for its values."""
        return sum(part.size_bytes for part in self.parts)


def added(checkpoint: ResolvedCheckpoint, base: ResolvedCheckpoint) -> ResolvedCheckpoint:
    """Return a difference with the tensors that are the base's plus its own.

    Tensors that are not floating-point are the base's. What is missing, or too much, or of another
    shape is left to the check of all experts.
    """
    family = base.architecture
    named, prefix = without_prefix(checkpoint.tensors, base.tensors)
    named = family.spelled_as(base.tensors, named)
    tied = family.tied(base.config, [base.tensors, named])
    weights = {
        name: replace(header, file=OF_BASE + header.file) for name, header in base.tensors.items()
    }
    tensors = {name: header for name, header in weights.items() if not header.is_float}
    for name, header in named.items():
        if name in tied or name not in weights:
            tensors[name] = header
        elif weights[name].is_float:
            tensors[name] = _sum(weights[name], header)
    return replace(
        checkpoint,
        config=base.config,
        documents=base.documents,
        languages=base.languages,
        tensors=tensors,
        prefix=prefix,
    )


def _sum(weight: TensorHeader, difference: TensorHeader) -> SummedTensor:
    return SummedTensor(
        name=weight.name,
        dtype="F32" if difference.is_float else difference.dtype,
        shape=difference.shape,
        file=weight.file,
        start=weight.start,
        end=weight.end,
        weight=weight,
        difference=difference,
    )
