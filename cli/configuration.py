"""The settings of a command: its options win over the environment."""

from __future__ import annotations

from pydantic import ValidationError

from app.contract.errors import InvalidRequestError, Problem
from app.contract.problems import problems_of
from app.contract.settings import Settings


def load_settings(**options: object) -> Settings:
    """Return the settings; an option that is None leaves the environment's choice.

    Raises InvalidRequestError that names the environment variables at fault.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = [
            Problem(problem.message, f"AFLUENTE_{(problem.param or '').upper()}")
            for problem in problems_of(error)
        ]
        raise InvalidRequestError.of(problems) from None
