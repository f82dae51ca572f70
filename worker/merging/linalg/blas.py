"""BLAS and LAPACK routines, from scipy's public interface for compiled callers, on one thread.

Unlike scipy's Python functions they let other threads run. Tensors are merged in parallel, each on
one thread: more would only wait for each other, and the order of a sum must not depend on the
number of cores.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits


def call(name: str, *arguments: Any) -> None:
    """Call a routine with letters (bytes), integers, tensors, and pointers that ctypes made.

    LAPACK's last argument, `info`, is added. Raises ArithmeticError if it says that there is no
    solution (which NaN and infinity have not).
    """
    addresses = [*map(_address, arguments)]
    if name not in _modules()[0].__pyx_capi__:
        _routine(name, len(addresses))(*addresses)
        return
    info = ctypes.c_int(0)
    _routine(name, len(addresses) + 1)(*addresses, ctypes.byref(info))
    if info.value:
        raise ArithmeticError(f"LAPACK's {name} found no solution (info {info.value}).")


def _address(argument: Any) -> Any:
    if isinstance(argument, bytes):
        return ctypes.c_char_p(argument)
    if isinstance(argument, int):
        return ctypes.byref(ctypes.c_int(argument))
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return argument


@cache
def _routine(name: str, arguments: int) -> Any:
    capsule = next(m.__pyx_capi__[name] for m in _modules() if name in m.__pyx_capi__)
    get_name, get_pointer = (
        ctypes.pythonapi.PyCapsule_GetName,
        ctypes.pythonapi.PyCapsule_GetPointer,
    )
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    pointer = get_pointer(capsule, get_name(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(pointer)


@cache
def _modules() -> tuple[Any, Any]:
    """Return scipy's modules of LAPACK and BLAS routines, without the package around them.

    The package takes a tenth of a second and 15 MiB to import.
    """
    return _module("cython_lapack"), _module("cython_blas")


def _module(name: str) -> Any:
    import scipy

    full = f"scipy.linalg.{name}"
    if full in sys.modules:
        return sys.modules[full]
    spec = PathFinder.find_spec(full, [str(Path(scipy.__file__).parent / "linalg")])
    if spec is None or spec.loader is None:
        raise ImportError(f"{full} is not where scipy {scipy.__version__} should have it.")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_modules()
# The limit holds for the libraries that are loaded by now: numpy's, and scipy's.
threadpool_limits(1, user_api="blas")
