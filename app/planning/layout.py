"""Lays out the artifact's safetensors files before any tensor is merged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from app.contract.tensors import ADAPTER_PREFIX, ADAPTER_WEIGHTS, ITEM_SIZES, TensorHeader

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_ALIGNMENT = 8  # the format wants the header's length to be a multiple of this


@dataclass(frozen=True)
class OutputFile:
    """One safetensors file: the bytes of its header, and its tensors in stored order.

    One that has added rows is in `tensors` without them, and they follow, as tensors of their own.
    `names` are those in the header.
    """

    name: str
    header: bytes
    tensors: tuple[TensorHeader, ...]
    names: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return self.tensors[-1].end if self.tensors else len(self.header)


def lay_out(
    tensors: Iterable[TensorHeader],
    dtypes: Mapping[str, str],
    max_shard_bytes: int,
    added: Mapping[str, Sequence[TensorHeader]] = MappingProxyType({}),
) -> tuple[OutputFile, ...]:
    """Return the files for `tensors` in the given dtypes, each of at most `max_shard_bytes`.

    Wider dtypes come first, so that every tensor is aligned; within a dtype, tensors are sorted by
    name. A tensor larger than the limit gets its own file. `added` are the rows that a tensor has
    besides its own, by its name.
    """
    ordered = sorted(tensors, key=lambda t: (-ITEM_SIZES[dtypes[t.name]], t.name))
    shards: list[list[TensorHeader]] = [[]]
    used = 0
    for tensor in ordered:
        entries = sum(part.numel for part in (tensor, *added.get(tensor.name, ())))
        size = entries * ITEM_SIZES[dtypes[tensor.name]]
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += size
    count = len(shards)
    return tuple(
        _file(_name(number, count), shard, dtypes, added)
        for number, shard in enumerate(shards, start=1)
    )


def lay_out_adapter(targets: Iterable[TensorHeader], rank: int, dtype: str) -> OutputFile:
    """Return the file of a LoRA of these matrices, of the given rank where they have as much."""
    made = []
    for target in targets:
        own = min(rank, *target.shape)
        rows, columns = target.shape
        shapes = ((own, columns), (rows, own))
        for name, shape in zip(factor_names(target.name), shapes, strict=True):
            made.append(TensorHeader(name, dtype, shape, ADAPTER_WEIGHTS, 0, 0))
    made.sort(key=lambda tensor: tensor.name)
    return _file(ADAPTER_WEIGHTS, made, {tensor.name: dtype for tensor in made}, {})


def factor_names(name: str) -> tuple[str, str]:
    """Return the names of A and B, whose product B·A is the change of a weight."""
    module = ADAPTER_PREFIX + name.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def index_document(files: Iterable[OutputFile]) -> dict[str, object]:
    """Return the content of `model.safetensors.index.json` for sharded files."""
    places = {name: file.name for file in files for name in file.names}
    total = sum(tensor.size_bytes for file in files for tensor in file.tensors)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def _name(number: int, count: int) -> str:
    return WEIGHTS_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _file(
    name: str,
    tensors: list[TensorHeader],
    dtypes: Mapping[str, str],
    added: Mapping[str, Sequence[TensorHeader]],
) -> OutputFile:
    document: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    places: list[tuple[TensorHeader, str, int]] = []
    for tensor in tensors:
        dtype, begin = dtypes[tensor.name], offset
        parts = (tensor, *added.get(tensor.name, ()))
        for part in parts:
            places.append((part, dtype, offset))
            offset += part.numel * ITEM_SIZES[dtype]
        shape = list(tensor.shape)
        shape[:1] = [sum(part.shape[0] for part in parts)] if shape else []
        document[tensor.name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, offset]}
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    placed = tuple(
        TensorHeader(
            part.name,
            dtype,
            part.shape,
            name,
            len(header) + start,
            len(header) + start + part.numel * ITEM_SIZES[dtype],
        )
        for part, dtype, start in places
    )
    return OutputFile(name, header, placed, tuple(tensor.name for tensor in tensors))
