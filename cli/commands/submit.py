"""`afluente submit`: sends a recipe to the service, and can wait for the result."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.commands.merge import Recipe
from cli.options import Key, Url


def submit(
    recipe: Recipe,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the merge to end.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Makes the call safe to repeat. Default: a random key.")
    ] = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Send a recipe to the service; with --wait, show progress and print the result.

    With --wait the exit status is 3 if the recipe's gate has not passed, and 1 if the merge or its
    evaluation failed, or utterances were skipped.
    """
    from uuid import uuid4

    from app.contract.errors import JobError
    from cli.client import Client
    from cli.following import follow
    from cli.gates import fail_unless_passed
    from cli.progress import ProgressReport
    from cli.recipes import read_recipe, with_absolute_paths

    body = with_absolute_paths(read_recipe(recipe))
    with Client(url, api_key) as client:
        merge = client.post("/merges", body, idempotency_key=idempotency_key or uuid4().hex)
        if not wait:
            typer.echo(merge["id"])
            return
        with ProgressReport(merge["id"]) as report:
            merge = follow(client, merge, report)
        _print_result(merge, client.url)
        if merge["status"] != "succeeded":
            raise JobError(_failure(merge))
        evaluation = merge["evaluation"]
        if evaluation["status"] != "none":
            _print_table(client, merge)
        fail_unless_passed([evaluation["gate"]] if evaluation["gate"] else [])
        if evaluation["status"] not in {"none", "succeeded"}:
            raise JobError(_failure_of_evaluation(evaluation))


def _print_result(merge: dict[str, Any], url: str) -> None:
    typer.echo(f"{merge['id']} {merge['status']}  {url}/merges/{merge['id']}")
    for file in merge["artifacts"]:
        typer.echo(f"{file['sha256']}  {file['bytes']:>12}  {file['name']}")


def _failure(merge: dict[str, Any]) -> str:
    error = merge["error"]
    return f"{merge['id']} {merge['status']}" + (f": {error['message']}" if error else "")


def _failure_of_evaluation(evaluation: dict[str, Any]) -> str:
    error, status = evaluation.get("error"), evaluation["status"]
    reason = error["message"] if error else "see `skipped` in the merge's wer"
    return f"the evaluation is {status}: {reason}"


def _print_table(client: Any, merge: dict[str, Any]) -> None:
    from cli.tables import wer_table

    typer.echo("\nword error rates in percent")
    document = client.get(f"/merges/{merge['id']}/wer")
    typer.echo(wer_table(client, document, {merge["id"]: merge}), nl=False)
