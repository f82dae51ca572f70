"""The merge methods as the catalogue describes them."""

from __future__ import annotations

from typing import Any

from app.contract.catalogue import CATALOGUE, describe
from app.contract.errors import NotFoundError
from app.contract.problems import did_you_mean
from app.services.resources import MethodPage


def list_all() -> MethodPage:
    """Return every method, in the catalogue's order."""
    return MethodPage(data=[describe(method) for method in CATALOGUE.values()])


def get(name: str) -> dict[str, Any]:
    """Return one method; NotFoundError suggests the nearest name."""
    method = CATALOGUE.get(name)
    if method is None:
        raise NotFoundError(
            f'Unknown method "{name}".{did_you_mean(name, CATALOGUE)} '
            f"Known: {', '.join(CATALOGUE)}."
        )
    return describe(method)
