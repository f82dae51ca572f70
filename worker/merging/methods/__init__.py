"""The merge methods: one module each, of the method's name in the catalogue."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from app.contract.catalogue import parse_method
from worker.merging.interface import Method


@cache
def load(name: str) -> Method:
    """Return a method's functions; InvalidRequestError if the catalogue has none of that name."""
    module = import_module(f"{__name__}.{parse_method(name).name}")
    return Method(*(getattr(module, part, None) for part in ("merge", "survey", "coefficients")))
