"""Lays out the artifact's safetensors files before any tensor is merged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from app.contract.tensors import ITEM_SIZES, TensorHeader

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_ALIGNMENT = 8  # the format wants the header's length to be a multiple of this


@dataclass(frozen=True)
class OutputFile:
    """One safetensors file: the bytes of its header, and its tensors in stored order."""

    name: str
    header: bytes
    tensors: tuple[TensorHeader, ...]

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return self.tensors[-1].end if self.tensors else len(self.header)


def lay_out(
    tensors: Iterable[TensorHeader], dtypes: Mapping[str, str], max_shard_bytes: int
) -> tuple[OutputFile, ...]:
    """Return the files for `tensors` in the given dtypes, each of at most `max_shard_bytes`.

    Wider dtypes come first, so that every tensor is aligned; within a dtype, tensors are sorted by
    name. A tensor larger than the limit gets its own file.
    """
    ordered = sorted(tensors, key=lambda t: (-ITEM_SIZES[dtypes[t.name]], t.name))
    shards: list[list[TensorHeader]] = [[]]
    used = 0
    for tensor in ordered:
        size = tensor.numel * ITEM_SIZES[dtypes[tensor.name]]
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += size
    count = len(shards)
    return tuple(
        _file(_name(number, count), shard, dtypes) for number, shard in enumerate(shards, start=1)
    )


def index_document(files: Iterable[OutputFile]) -> dict[str, object]:
    """Return the content of `model.safetensors.index.json` for sharded files."""
    places = {tensor.name: file.name for file in files for tensor in file.tensors}
    total = sum(tensor.size_bytes for file in files for tensor in file.tensors)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def _name(number: int, count: int) -> str:
    return WEIGHTS_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _file(name: str, tensors: list[TensorHeader], dtypes: Mapping[str, str]) -> OutputFile:
    document: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    offsets = []
    for tensor in tensors:
        dtype = dtypes[tensor.name]
        end = offset + tensor.numel * ITEM_SIZES[dtype]
        document[tensor.name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offsets.append((offset, end))
        offset = end
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    placed = tuple(
        TensorHeader(
            tensor.name,
            dtypes[tensor.name],
            tensor.shape,
            name,
            len(header) + start,
            len(header) + end,
        )
        for tensor, (start, end) in zip(tensors, offsets, strict=True)
    )
    return OutputFile(name, header, placed)
