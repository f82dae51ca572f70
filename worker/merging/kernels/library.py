"""The compiled kernels: the build for this processor's instructions, and how it is called."""

from __future__ import annotations

import ctypes
import hashlib
import platform
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ALIGNED = 2**14
"""Kernels sum in chunks: blocks of a multiple of this many entries are summed as one would be."""

Array = torch.Tensor | NDArray[Any]
FLOAT, DOUBLE, INT, LONG = ctypes.c_float, ctypes.c_double, ctypes.c_int32, ctypes.c_int64
POINTER = ctypes.c_void_p

# What /proc/cpuinfo says of a processor that has all instructions of x86-64's second to fourth
# level (the System V psABI's), beyond what those of the level before it have.
_LEVELS = {
    "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    "v2": {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"},
}


def builds() -> list[Path]:
    """Return the library's builds that this processor can run, the best first."""
    folder, machine = Path(__file__).parent, platform.machine()
    names = [f"native_{machine}"]
    if machine == "x86_64":
        has = _instructions()
        levels: list[str] = []
        for level, wants in reversed(_LEVELS.items()):
            if not wants <= has:
                break
            levels.insert(0, level)
        names = [f"native_{machine}_{level}" for level in levels]
    return [path for name in names if (path := folder / f"{name}.so").exists()]


def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Return a kernel, given the C types of its result and its arguments."""
    found: Any = getattr(_library(), name)
    found.restype, found.argtypes = result, arguments
    called: Callable[..., Any] = found
    return called


def address(array: Array, dtype: torch.dtype | type[np.generic] = torch.float32) -> int:
    """Return where an array's entries begin; TypeError unless they are as a kernel takes them."""
    if isinstance(array, torch.Tensor):
        if array.dtype is dtype and array.is_contiguous() and not array.is_cuda:
            return array.data_ptr()
    elif array.dtype == dtype and array.flags.c_contiguous:
        return array.ctypes.data
    raise TypeError(f"A kernel takes contiguous {dtype} in memory, not {array.dtype}.")


def floats(numbers: Iterable[float]) -> Any:
    """Return numbers as an array of C floats."""
    listed = tuple(numbers)
    return (FLOAT * len(listed))(*listed)


@cache
def _library() -> ctypes.CDLL:
    found = builds()
    if not found:
        raise ImportError(
            f"The compiled kernels are not in {Path(__file__).parent}, or not for this processor "
            f"({platform.machine()}). Install the project again: pip install -e . (or make install)"
        )
    library = ctypes.CDLL(str(found[0]))
    library.sources.restype = ctypes.c_char_p
    if library.sources().decode() != _digest():
        raise ImportError(
            f"{found[0]} was compiled from other sources than those beside it, and would be called "
            "wrongly. Install the project again: pip install -e . (or make install)"
        )
    return library


def _digest() -> str:
    whole = hashlib.sha256()
    for path in sorted((Path(__file__).parent / "native").iterdir()):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def _instructions() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())
