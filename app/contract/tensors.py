"""Tensor entries of safetensors headers, and the dtypes that can be merged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

# safetensors' names -> bytes an entry.
ITEM_SIZES: dict[str, int] = {
    "F64": 8, "I64": 8, "U64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip

# The floating-point dtypes that are merged, with their unit roundoff.
UNIT_ROUNDOFFS: dict[str, float] = {
    "F64": 2.0**-53,
    "F32": 2.0**-24,
    "F16": 2.0**-11,
    "BF16": 2.0**-8,
}

# The names that requests, configs and torch use.
DTYPE_NAMES: dict[str, str] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
}  # fmt: skip

# PEFT's file of a LoRA, and what it puts before the names of its tensors.
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PREFIX = "base_model.model."


@dataclass(frozen=True)
class TensorHeader:
    """One stored tensor: its file, and its start and end in bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def numel(self) -> int:
        """The number of entries."""
        return prod(self.shape)

    @property
    def parts(self) -> tuple[TensorHeader, ...]:
        """The stored tensors that its values are made of: itself, unless a form says otherwise.

        The first has an entry for each of its own.
        """
        return (self,)

    @property
    def size_bytes(self) -> int:
        """How many bytes are read for its values."""
        return self.end - self.start

    @property
    def held_bytes(self) -> int:
        """How many bytes are in memory while blocks of it are read."""
        return 0

    @property
    def change_rank(self) -> int | None:
        """The rank of what is added to the base's matrix; None if it is not known to be low."""
        return None

    @property
    def is_float(self) -> bool:
        """Whether the tensor is merged (others must be equal in all inputs, and are copied)."""
        return self.dtype in UNIT_ROUNDOFFS


@dataclass(frozen=True)
class AddedRows:
    """Rows `start` to `stop` of a tensor, which experts have beyond the reference's.

    `target` is named after both; `holders` are the experts that have them, by position.
    """

    tensor: str
    start: int
    stop: int
    holders: tuple[int, ...]
    target: TensorHeader


def dtype_for(tensors: Iterable[TensorHeader]) -> str:
    """Return the name of the dtype of all floating-point tensors; float32 if they have several."""
    stored = {tensor.dtype for tensor in tensors if tensor.is_float}
    names = {"F16": "float16", "BF16": "bfloat16"}
    return names.get(stored.pop(), "float32") if len(stored) == 1 else "float32"
