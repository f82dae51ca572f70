"""How a kernel is compiled: for given types, once a machine, without bounds checks."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(signature: str, *, reorder: bool = False) -> Callable[[_Function], _Function]:
    """Return a decorator that compiles a function for the types of `signature`.

    What was compiled is kept in NUMBA_CACHE_DIR, else beside the source, else in the user's cache.
    With `reorder` sums may be taken in the order that suits the processor:
    for float64 only, and always the same on one machine.
    """
    fast = {"reassoc", "contract", "nsz"} if reorder else False

    def compiled(function: _Function) -> _Function:
        def compile_it(cache: bool) -> _Function:
            made: _Function = numba.njit(
                signature, nogil=True, cache=cache, error_model="numpy", fastmath=fast
            )(function)
            return made

        # Without a place for it, on a full disk, or where it was damaged: then without a cache.
        try:
            return compile_it(True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
            return compile_it(False)

    return compiled


def part(function: _Function) -> _Function:
    """Compile a function into the kernels that call it."""
    inlined: _Function = numba.njit(inline="always", error_model="numpy")(function)
    return inlined
