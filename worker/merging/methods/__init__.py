"""The merge methods: one module each, of the method's name in the catalogue."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from app.contract.catalogue import parse_method
from worker.merging.interface import Merge


def load(name: str) -> Merge:
    """Return the `merge` function of a method; InvalidRequestError if the catalogue has none."""
    module = import_module(f"{__name__}.{parse_method(name).name}")
    return cast("Merge", module.merge)
