"""The merge methods: one module each, of the method's name in the catalogue."""

from __future__ import annotations

from importlib import import_module

from app.contract.catalogue import parse_method
from worker.merging.method import METHODS, Method


def load(name: str) -> Method:
    """Return a method's function; InvalidRequestError if the catalogue has none of that name."""
    if name not in METHODS:
        import_module(f"{__name__}.{parse_method(name).name}")
    return METHODS[name]
