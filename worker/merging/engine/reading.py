"""Reads stored tensors, whole or by ranges of entries, without mapping files into memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from io import FileIO
from types import TracebackType
from typing import Self

import torch

from app.contract.errors import SourceChangedError
from app.contract.tensors import ITEM_SIZES, TensorHeader

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class TensorReader:
    """The tensors of one checkpoint's files, kept open; safe to use from several threads.

    Reads go through `pread`, not `mmap`: a file that is cut short while a merge runs then gives
    an error that names it, where a mapping would kill the process.
    """

    def __init__(
        self,
        label: str,
        tensors: Mapping[str, TensorHeader],
        open_file: Callable[[str], FileIO],
    ) -> None:
        self.label = label
        self.tensors = tensors
        self._open_file = open_file
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for name in {header.file for header in self.tensors.values()}:
                handle = stack.enter_context(self._open_file(name))
                self._descriptors[name] = handle.fileno()
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.close()

    def read_bytes(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the bytes of entries `start` to `stop`, flat, uint8."""
        size = ITEM_SIZES[self.tensors[name].dtype]
        raw = torch.empty((stop - start) * size, dtype=torch.uint8)
        self._fill(name, start, raw.numpy().data)
        return raw

    def place(self, name: str) -> tuple[int, torch.dtype, int]:
        """Return where kernels read a tensor: file descriptor, dtype, offset in bytes."""
        header = self.tensors[name]
        return self._descriptors[header.file], DTYPES[header.dtype], header.start

    def failed(self, name: str, code: int) -> SourceChangedError:
        """Return the error of a tensor that could not be read, with an errno, or 0 at its end."""
        file = self.tensors[name].file
        if code == 0:
            return self._changed(f"{file} ends within the tensor {name}")
        return self._changed(f"{file} cannot be read ({os.strerror(code)})")

    def _fill(self, name: str, start: int, view: memoryview) -> None:
        header = self.tensors[name]
        offset = header.start + start * ITEM_SIZES[header.dtype]
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptors[header.file], [view[done:]], offset + done)
            except OSError as error:
                raise self.failed(name, error.errno or errno.EIO) from None
            if count == 0:
                raise self.failed(name, 0)
            done += count

    def _changed(self, what: str) -> SourceChangedError:
        return SourceChangedError(
            f"{self.label}: {what}; it was whole when the merge began. Restore it and retry."
        )
