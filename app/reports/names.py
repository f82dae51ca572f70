"""Display names of merges: their name, else method and λ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

_END = 4
_LONGEST = 40


def label_of(method: str, parameters: Mapping[str, Any]) -> str:
    """Return a method with its λ."""
    coefficient = parameters.get("scaling_coefficient")
    last = parameters.get("scaling_coefficient_last")
    shown = "" if coefficient is None else f" λ={coefficient:g}"
    return method + shown + ("" if last is None else f"…{last:g}")


def names_of(merges: Mapping[str, Mapping[str, Any]], taken: Mapping[str, str]) -> dict[str, str]:
    """Return display names by id, each on one line, different from each other and from `taken`.

    A merge without a unique name gets the end of its id, or all of it, as a suffix.
    """
    own = {merge_id: _shown(merge["name"] or "") for merge_id, merge in merges.items()}
    first = {
        merge_id: own[merge_id] or label_of(merge["method"], merge["parameters"])
        for merge_id, merge in merges.items()
    }
    called = {
        merge_id: name if own[merge_id] else f"{name} …{merge_id[-_END:]}"
        for merge_id, name in first.items()
    }
    for end in (_END, 0):
        often = Counter([*called.values(), *taken.values()])
        called = {
            merge_id: f"{first[merge_id]} {'…' if end else ''}{merge_id[-end:]}"
            if often[name] > 1
            else name
            for merge_id, name in called.items()
        }
    return called


def _shown(name: str) -> str:
    """Return a name for a terminal: printable and not too long."""
    plain = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )
    plain = " ".join(plain.split())
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"
