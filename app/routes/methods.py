"""`/methods`: the merge methods."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.routes.openapi import problems
from app.services import methods
from app.services.resources import MethodPage

router = APIRouter(prefix="/methods", tags=["methods"])


@router.get("", responses=problems())
def list_methods() -> MethodPage:
    """List the merge methods, with the JSON Schema of their parameters."""
    return methods.list_all()


@router.get("/{name}", responses=problems(404))
def get_method(name: str) -> dict[str, Any]:
    """Return a method: title, paper, requirements and parameters."""
    return methods.get(name)
