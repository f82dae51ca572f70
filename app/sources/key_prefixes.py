"""What wrappers put before the names of all tensors.

torch.compile puts `_orig_mod.`, data parallel training `module.`, a class that holds the model as
its `model` gives `model.model.`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from app.contract.tensors import TensorHeader


def shared_start(names: Sequence[str]) -> str:
    """Return what all names begin with."""
    first, last = min(names, default=""), max(names, default="")
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in alike)


def common_prefix(names: Iterable[str], known: Container[str]) -> str:
    """Return what stands before all names and without which more of them are known; else "".

    It ends with a dot.
    """
    listed = list(names)
    shared = shared_start(listed)
    ends = [0, *(place + 1 for place, letter in enumerate(shared) if letter == ".")]
    # Of several that are as good, the shortest.
    return shared[: max(ends, key=lambda end: sum(name[end:] in known for name in listed))]


def without_prefix(
    tensors: Mapping[str, TensorHeader], known: Container[str]
) -> tuple[Mapping[str, TensorHeader], str]:
    """Return the tensors under names without their common prefix, and the prefix."""
    prefix = common_prefix(tensors, known)
    if not prefix:
        return tensors, ""
    names = {name: name.removeprefix(prefix) for name in tensors}
    return {
        names[name]: replace(header, name=names[name]) for name, header in tensors.items()
    }, prefix
