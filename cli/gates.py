"""Gates on the command line: limits from options, verdicts on stderr and in the exit status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer
from pydantic import ValidationError

from app.contract.errors import InvalidRequestError, Problem
from app.contract.gate import EVERY_SET, GateSpec
from app.contract.problems import did_you_mean, problems_of

# Different from 1 (any other failure) and 2 (an unknown option).
NOT_PASSED = 3


def limits(asked: Mapping[str, Sequence[str] | None], against: str | None) -> GateSpec | None:
    """Return the gate of the options, or None; InvalidRequestError if they are invalid.

    `asked` has the values of each option by the limit's name in a gate.
    """
    found = {
        name: _rates(f"--{name.replace('_', '-')}", texts) for name, texts in asked.items() if texts
    }
    if against is not None and "max_regression" not in found:
        raise InvalidRequestError("--against needs --max-regression.", param="--against")
    if not found:
        return None
    try:
        return GateSpec.model_validate({**found, "against": against or "base"})
    except ValidationError as error:
        raise InvalidRequestError.of(problems_of(error, GateSpec)) from None


def verdict(document: Mapping[str, Any], gate: GateSpec) -> dict[str, Any]:
    """Return the verdict on a `/wer` document.

    InvalidRequestError for unknown names, and for the document of an older service.
    """
    from app.contract.evaluation import unknown_set
    from app.reports.gate import judge

    asked = list(document["evaluation"]["datasets"])
    known = list(dict.fromkeys([*asked, *(one["name"] for one in document["datasets"])]))
    problems = [Problem(f"{unknown_set(name, known)}.") for name in gate.names if name not in known]
    systems = list(document["systems"])
    if gate.max_regression and systems and gate.system not in {*systems, "base"}:
        near, listed = did_you_mean(gate.against, systems), ", ".join(systems)
        problems.append(
            Problem(f'No results for the system "{gate.against}".{near} Known: {listed}.')
        )
    if problems:
        raise InvalidRequestError.of(problems)
    return judge(document, gate, _evaluation_field(document, "sets"))


def requested(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the verdict on the request's gate; InvalidRequestError if it has none."""
    found = _evaluation_field(document, "gate")
    if found is None:
        status = document["evaluation"]["status"]
        raise InvalidRequestError(
            f"The newest evaluation ({status}) has no gate; give --max-wer or another limit."
        )
    return dict(found)


def fail_unless_passed(verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Print the verdicts on stderr; exit with NOT_PASSED unless all have passed."""
    for found in verdicts:
        for failure in found["failures"]:
            typer.echo(f"gate: {failure['message']}", err=True)
        if found["passed"] is None:
            typer.echo("gate: the evaluation has not ended", err=True)
    if not verdicts:
        return
    passed = all(found["passed"] for found in verdicts)
    typer.echo(f"gate: {'passed' if passed else 'not passed'}", err=True)
    if not passed:
        raise typer.Exit(NOT_PASSED)


def _evaluation_field(document: Mapping[str, Any], field: str) -> Any:
    """Return a field of a `/wer` document's evaluation; older services lack some."""
    if field not in document["evaluation"]:
        raise InvalidRequestError(
            f"The service's /wer has no `evaluation.{field}`, which a gate needs: the service is "
            "older than this command line. Upgrade the service, or use the same version of the "
            "command line."
        )
    return document["evaluation"][field]


def _rates(option: str, texts: Sequence[str]) -> dict[str, float]:
    rates: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        key = name or EVERY_SET
        if key in rates:
            which = f'of "{name}"' if name else "of every set"
            raise InvalidRequestError(f"{option}: two limits {which}.", param=option)
        rates[key] = _rate(option, text, number)
    return rates


def _rate(option: str, text: str, number: str) -> float:
    try:
        rate = float(number)
    except ValueError:
        rate = float("nan")
    if not abs(rate) < float("inf"):
        raise InvalidRequestError(
            f'{option}: "{text}" is not a rate such as 0.1 or parliament=0.1.', param=option
        )
    # A gate's counts must be int.
    return int(rate) if rate.is_integer() else rate
