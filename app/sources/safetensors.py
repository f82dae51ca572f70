"""Reads and checks safetensors headers; tensors are never read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.contract.errors import InvalidCheckpointError
from app.contract.problems import shown
from app.contract.tensors import ITEM_SIZES, TensorHeader
from app.sources.json_text import BadJsonError, read_object

# Whisper large-v3 has 1,259 tensors and a header of 150 kB. Many headers are held at once.
MAX_HEADER_BYTES = 4_000_000
MOST_TENSORS = 5_000
_LONGEST_NAME = 500
_MOST_DIMENSIONS = 32
_LENGTH_BYTES = 8
# Enough for every Whisper's header in one read (large-v3's has 150 kB).
_FIRST_READ_BYTES = 256 * 1024
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class SafetensorsHeader:
    """The tensors of one file in offset order, and its `__metadata__`."""

    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, str]


class _BadHeaderError(ValueError):
    """What is wrong with a header, without the file's name."""


def parse_header(
    read_prefix: Callable[[int], bytes], file_size: int, label: str, *, file: str | None = None
) -> SafetensorsHeader:
    """Return the header of a safetensors file of `file_size` bytes.

    `read_prefix(n)` gives the first n bytes; `label` names the file in errors, `file` in the
    tensors' headers (the label if not given).

    Raises:
        InvalidCheckpointError: the file is not safetensors, is cut off, is far larger than any
            Whisper's, or states offsets that overlap, leave a gap or lie outside it.

    """
    try:
        text = _read_text(read_prefix, file_size)
        entries = _read_entries(text)
        metadata = _check_metadata(entries.pop("__metadata__", {}))
        if len(entries) > MOST_TENSORS:
            raise _BadHeaderError(f"{len(entries):,} tensors, over the {MOST_TENSORS:,} allowed")
        data_start = _LENGTH_BYTES + len(text)
        tensors = [_check_tensor(name, entry, file or label) for name, entry in entries.items()]
        ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.end))
        _check_layout(ordered, file_size - data_start)
    except _BadHeaderError as error:
        raise InvalidCheckpointError(f"{label}: {error}") from None
    return SafetensorsHeader(
        {tensor.name: _shift(tensor, data_start) for tensor in ordered}, metadata
    )


def _read_text(read_prefix: Callable[[int], bytes], file_size: int) -> bytes:
    if file_size == 0:
        raise _BadHeaderError("the file is empty")
    if file_size < _LENGTH_BYTES + 2:
        raise _BadHeaderError(f"the file has {file_size} bytes, too few for a safetensors header")
    prefix = read_prefix(min(file_size, _FIRST_READ_BYTES))
    length = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise _BadHeaderError(
            f"states a header of {length:,} bytes, over the {MAX_HEADER_BYTES:,} allowed: "
            "the file is damaged or not safetensors"
        )
    if length > file_size - _LENGTH_BYTES:
        raise _BadHeaderError(
            f"states a header of {length:,} bytes but the file has only {file_size:,}: "
            "it is cut off or not safetensors"
        )
    if len(prefix) < _LENGTH_BYTES + length:
        prefix = read_prefix(_LENGTH_BYTES + length)
    text = prefix[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if len(text) < length:
        raise _BadHeaderError("the file ended before its header did")
    return text


def _read_entries(text: bytes) -> dict[str, object]:
    if not text.startswith(b"{"):
        raise _BadHeaderError("the header does not start with '{': the file is not safetensors")
    try:
        return read_object(text, strict=True)
    except BadJsonError as error:
        raise _BadHeaderError(f"the header {error}") from None


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise _BadHeaderError("__metadata__ is not an object of strings")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise _BadHeaderError("__metadata__ holds something that is not a string")
    return metadata


def _check_tensor(name: str, entry: object, file: str) -> TensorHeader:
    if not name.isprintable() or not name or len(name) > _LONGEST_NAME:
        raise _BadHeaderError(
            f"tensor name {_show(name)} is empty, has characters that do not print or is too long"
        )
    tensor = f"tensor {_show(name)}"
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise _BadHeaderError(f"{tensor} must state dtype, shape and data_offsets, only")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise _BadHeaderError(
            f"{tensor} has the unknown dtype {shown(dtype)} (known: {', '.join(ITEM_SIZES)})"
        )
    if not _are_sizes(shape):
        raise _BadHeaderError(f"{tensor} has a shape that is not a list of sizes, 32 at most")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _BadHeaderError(f"{tensor} has data_offsets that are not [begin, end]")
    start, end = offsets
    needed = math.prod(shape) * ITEM_SIZES[dtype]
    if needed != end - start:
        raise _BadHeaderError(
            f"{tensor} of shape {shape} and dtype {dtype} needs {needed:,} bytes, "
            f"its data_offsets give {end - start:,}"
        )
    return TensorHeader(name, dtype, tuple(shape), file, start, end)


def _are_sizes(value: object) -> bool:
    # bool is an int to Python, but `true` is no size.
    return (
        isinstance(value, list)
        and len(value) <= _MOST_DIMENSIONS
        and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def _check_layout(ordered: list[TensorHeader], data_bytes: int) -> None:
    position = 0
    for tensor in ordered:
        if tensor.start < position:
            raise _BadHeaderError(f"tensor {_show(tensor.name)} overlaps the one before it")
        if tensor.start > position:
            raise _BadHeaderError(
                f"there is a gap of {tensor.start - position:,} bytes before "
                f"tensor {_show(tensor.name)}"
            )
        if tensor.end > data_bytes:
            raise _BadHeaderError(
                f"tensor {_show(tensor.name)} ends at byte {tensor.end:,} of the data, which has "
                f"only {data_bytes:,}: the file is cut off"
            )
        position = tensor.end
    if position < data_bytes:
        raise _BadHeaderError(
            f"{data_bytes - position:,} bytes at the end of the file belong to no tensor"
        )


def _shift(tensor: TensorHeader, by: int) -> TensorHeader:
    return TensorHeader(
        tensor.name, tensor.dtype, tensor.shape, tensor.file, tensor.start + by, tensor.end + by
    )


def _show(name: str) -> str:
    # ascii() keeps control characters and lone surrogates out of logs and answers.
    return ascii(name) if len(name) <= 120 else f"{name[:117]!a}..."
