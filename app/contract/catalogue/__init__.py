"""The merge methods as data: parameters with bounds and defaults, papers, traits."""

from app.contract.catalogue.description import describe
from app.contract.catalogue.method import MethodParameters, Paper
from app.contract.catalogue.parsing import parse_method, parse_parameters, validate_weights
from app.contract.catalogue.registry import CATALOGUE

__all__ = [
    "CATALOGUE",
    "MethodParameters",
    "Paper",
    "describe",
    "parse_method",
    "parse_parameters",
    "validate_weights",
]
