"""The settings of a command: its options are the environment variables of the same name."""

from __future__ import annotations

import os

from pydantic import ValidationError

from app.contract.errors import InvalidRequestError, Problem
from app.contract.problems import problems_of
from app.contract.settings import Settings


def load_settings(**options: object) -> Settings:
    """Return the settings, also for the processes that this one starts.

    An option that is None leaves the environment's choice. Raises InvalidRequestError that names
    the environment variables at fault.
    """
    for name, value in options.items():
        if value is not None:
            os.environ[f"AFLUENTE_{name.upper()}"] = str(value)
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            Problem(problem.message, f"AFLUENTE_{(problem.param or '').upper()}")
            for problem in problems_of(error)
        ]
        raise InvalidRequestError.of(problems) from None
