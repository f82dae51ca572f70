"""The settings of a command: options override the environment variables of the same name."""

from __future__ import annotations

import os
from collections.abc import Collection

import typer
from pydantic import ValidationError

from app.contract.errors import InvalidRequestError, Problem
from app.contract.problems import problems_of
from app.contract.settings import Settings

# Settings that only the API uses.
API_ONLY = frozenset({"host", "port", "require_api_key", "max_body_bytes", "idempotency_seconds"})
# Settings that commands without the service do not use.
SERVICE_ONLY = API_ONLY | {
    "database_url", "broker_url", "artifact_dir", "lease_seconds", "renew_seconds", "poll_seconds",
    "sweep_seconds", "max_crashes", "stop_seconds", "failed_scratch_seconds",
}  # fmt: skip


def load_settings(ignoring: Collection[str] = (), **options: object) -> Settings:
    """Return the settings; child processes inherit them through the environment.

    Options that are None do not override. Invalid values of the settings in `ignoring` count as not
    set. Raises InvalidRequestError with the invalid environment variables.
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
    ignored = {f"AFLUENTE_{name.upper()}" for name in ignoring}
    if any(problem.param not in ignored for problem in problems):
        raise InvalidRequestError.of(problems)
    for problem in problems:
        typer.echo(f"afluente: {problem.param} is ignored. {problem.message}", err=True)
        os.environ.pop(str(problem.param), None)
    return Settings()


def only(*needed: str) -> frozenset[str]:
    """Return all settings except `needed`, for a command to ignore."""
    return frozenset(Settings.model_fields) - set(needed)
