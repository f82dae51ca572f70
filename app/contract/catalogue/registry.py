"""The table of all methods, in display order."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from app.contract.catalogue import calibrated, parameter_space, subspace, task_vector
from app.contract.catalogue.method import MethodParameters

CATALOGUE: Mapping[str, type[MethodParameters]] = MappingProxyType(
    {
        method.name: method
        for family in (parameter_space, task_vector, subspace, calibrated)
        for method in family.METHODS
    }
)
