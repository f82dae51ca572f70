"""How a kernel is compiled: for given types, once a machine, without bounds checks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(signature: str, *, reorder: bool = False) -> Callable[[_Function], _Function]:
    """Return a decorator that compiles a function for the types of `signature`.

    What was compiled is kept beside the source, or where that cannot be written in NUMBA_CACHE_DIR
    or the user's cache. With `reorder` sums may be taken in the order that suits the processor:
    for float64 only, and always the same on one machine.
    """
    fast = {"reassoc", "contract", "nsz"} if reorder else False
    compiled: Callable[[_Function], _Function] = numba.njit(
        signature, nogil=True, cache=_can_cache(), error_model="numpy", fastmath=fast
    )
    return compiled


def part(function: _Function) -> _Function:
    """Compile a function into the kernels that call it."""
    inlined: _Function = numba.njit(inline="always", error_model="numpy")(function)
    return inlined


def _can_cache() -> bool:
    """Say whether there is any place to keep what was compiled."""
    places = [os.environ.get("NUMBA_CACHE_DIR"), Path(__file__).parent, os.environ.get("HOME")]
    return any(place and os.access(place, os.W_OK) for place in places)
