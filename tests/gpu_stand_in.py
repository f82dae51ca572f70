"""A GPU's stand-in: tensors that say they are on cuda:0, and that nothing on the CPU can see.

It computes on the CPU. It refuses matrices and vectors in two places, and memory of its own that is
handed to numpy or to a kernel for the CPU. It shows neither speed nor a GPU's own rounding, and of
single numbers and indices not all that a GPU refuses, or takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda:0")
_MOVING = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
# What torch calls the device of a tensor that has no memory which it knows of.
_THERE = ("cuda", "meta")


def _dispatched(
    _: Any,
    func: Any,
    types: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Take an operation, as torch hands it to tensors and modes of their own kind."""
    return _computed(func, args, kwargs or {})


class OnGpu(torch.Tensor):
    """A tensor on the stand-in; `made` counts them."""

    made = 0
    inner: torch.Tensor
    device = property(lambda _: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, inner: torch.Tensor) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )
        made.inner = inner
        OnGpu.made += 1
        return made

    def data_ptr(self) -> int:
        """Raise: an address would be one of the GPU's memory."""
        raise RuntimeError(f"A kernel for the CPU was handed memory of {GPU}.")

    __torch_dispatch__ = classmethod(_dispatched)  # type: ignore[assignment]


class _Operations(TorchDispatchMode):
    __torch_dispatch__ = _dispatched  # type: ignore[assignment]


class _Constants(TorchFunctionMode):
    """Makes `torch.tensor(numbers, device=GPU)`, which modes of operations do not see."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.tensor and given.get("device") == GPU:
            del given["device"]
            return func(*args, **given).to(GPU)
        return func(*args, **given)


@contextmanager
def gpu() -> Iterator[None]:
    """Let this thread use the stand-in."""
    with _Operations(), _Constants():
        yield


class ThreadWithGpu(Thread):
    """A thread that uses the stand-in."""

    def run(self) -> None:
        with gpu():
            super().run()


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch begin with a GPU, without a build for one."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    properties = SimpleNamespace(name="a stand-in", multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Compute an operation where its operands are, or where it is told to."""
    operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, OnGpu) for x in operands)
    if there and func not in _MOVING:
        elsewhere = [x for x in operands if not isinstance(x, OnGpu) and x.dim() > 0]
        if elsewhere:
            raise RuntimeError(f"{func}: some operands are on {GPU} and some on the CPU.")
    inner_args, inner_kwargs = tree_map(
        lambda x: x.inner if isinstance(x, OnGpu) else x, (tuple(args), dict(kwargs))
    )
    target = there
    if kwargs.get("device") is not None:
        inner_kwargs["device"] = torch.device("cpu")
        target = torch.device(kwargs["device"]).type in _THERE
    if func is torch.ops.aten.copy_.default:
        target = isinstance(args[0], OnGpu)
    result = func(*inner_args, **inner_kwargs)
    if not target:
        return result
    result = tree_map(lambda x: OnGpu(x) if isinstance(x, torch.Tensor) else x, result)
    return return_and_correct_aliasing(func, args, dict(kwargs), result) if there else result
