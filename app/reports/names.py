"""What merges are called beside each other: by name, else by method and λ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

_END = 4


def label_of(method: str, parameters: Mapping[str, Any]) -> str:
    """Return a method and its λ."""
    coefficient = parameters.get("scaling_coefficient")
    return method + ("" if coefficient is None else f" λ={coefficient:g}")


def names_of(merges: Mapping[str, Mapping[str, Any]], taken: Mapping[str, str]) -> dict[str, str]:
    """Return what merges are called, by id: what has no name also by its id's end.

    So is what would be called like another merge or one of the `taken` names, by system.
    """
    called = {
        merge_id: merge["name"]
        or f"{label_of(merge['method'], merge['parameters'])} {_end_of(merge_id)}"
        for merge_id, merge in merges.items()
    }
    often = Counter([*called.values(), *taken.values()])
    return {
        merge_id: f"{name} {_end_of(merge_id)}" if often[name] > 1 else name
        for merge_id, name in called.items()
    }


def _end_of(merge_id: str) -> str:
    return f"…{merge_id[-_END:]}"
