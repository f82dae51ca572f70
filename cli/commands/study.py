"""`afluente study`: finds the merge to ship, on the service or in this process."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Device, Key, Threads, Url

if TYPE_CHECKING:
    from cli.client import Client

_EXIT_STATUS = (
    "Exit status: 0 if there is a merge to ship, or none was to be chosen; 3 if no merge meets the "
    "constraints, or the gate has not passed; 1 for any other failure."
)


class Format(StrEnum):
    """The form of the table."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"
    LATEX = "latex"
    HTML = "html"


def study(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|ID",
            help="JSON or YAML: the body of POST /studies (- reads standard input); or a study's "
            "id, std_..., whose table is printed.",
        ),
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Follow the study to its end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the study would do, and its cost.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Run in this process, without the service, and write table and merges into this "
            "folder. Repeat the command to go on with an interrupted study.",
        ),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="The table's form.")] = Format.TEXT,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Makes the call safe to repeat. Default: a random key.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Try many merges, choose on development sets, measure on test sets: which one to ship."""
    from uuid import uuid4

    from app.contract.errors import InvalidRequestError
    from app.contract.identifiers import STUDY, is_id
    from cli.client import Client
    from cli.recipes import read_recipe, with_absolute_paths

    if output is not None and (dry_run or is_id(recipe, STUDY)):
        raise InvalidRequestError("--output runs a recipe; leave out --dry-run, and name no study.")
    if is_id(recipe, STUDY):
        with Client(url, api_key) as client:
            if wait:
                _follow(client, recipe)
            _finish(client.get(f"/studies/{recipe}"), _table(client, recipe, form))
        return
    body = with_absolute_paths(read_recipe(Path(recipe)))
    if output is not None:
        _run_here(body, output, form, device, threads)
        return
    with Client(url, api_key) as client:
        if dry_run:
            typer.echo(_as_json(client.post("/studies?dry_run=true", body, idempotency_key="")))
            return
        key = idempotency_key or uuid4().hex
        study_id = client.post("/studies", body, idempotency_key=key)["id"]
        if not wait:
            typer.echo(study_id)
            return
        typer.echo(f"{study_id}  {client.url}/studies/{study_id}", err=True)
        _follow(client, study_id)
        _finish(client.get(f"/studies/{study_id}"), _table(client, study_id, form))


study.__doc__ = f"{study.__doc__}\n\n{_EXIT_STATUS}"


def _follow(client: Client, study_id: str) -> None:
    from cli.trials import TrialReport

    def trials() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.get(f"/studies/{study_id}/trials", page_size="1000")[
            "data"
        ]
        return found

    with TrialReport(trials) as report:
        for kind, data in client.events(f"/studies/{study_id}/events"):
            report.event(kind, data)


def _run_here(
    body: Mapping[str, Any],
    output: Path,
    form: Format,
    device: str | None,
    threads: int | None,
) -> None:
    from cli.configuration import SERVICE_ONLY, load_settings
    from cli.trials import TrialReport
    from worker.study_local import run_study

    settings = load_settings(SERVICE_ONLY, device=device, threads=threads)
    with TrialReport() as report:
        found = run_study(body, output, settings, report.event)
    names = {Format.MARKDOWN: "table.md", Format.LATEX: "table.tex"}
    if form is Format.TEXT:
        import json

        from app.reports.studies.terminal import render_study

        text = render_study(json.loads((output / "table.json").read_text(encoding="utf-8")))
    else:
        name = names.get(form, f"table.{form.value}")
        text = (output / name).read_text(encoding="utf-8")
    _finish(found.model_dump(mode="json"), text)


def _table(client: Client, study_id: str, form: Format) -> str:
    if form is Format.TEXT:
        from app.reports.studies.terminal import render_study

        return render_study(client.get(f"/studies/{study_id}/table"))
    if form is Format.JSON:
        return _as_json(client.get(f"/studies/{study_id}/table"))
    return client.get_text(f"/studies/{study_id}/table", format=form.value)


def _as_json(document: Any) -> str:
    import json

    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _finish(study: Mapping[str, Any], table: str) -> None:
    """Print the table; exit with a status that says whether there is a merge to ship."""
    from app.contract.errors import JobError
    from cli.gates import NOT_PASSED

    typer.echo(table, nl=not table.endswith("\n"))
    if study["status"] in {"failed", "cancelled"}:
        error = study["error"]
        raise JobError(
            f"{study['id']} {study['status']}" + (f": {error['message']}" if error else "")
        )
    outcome = study["outcome"]
    chooses = study["request"]["development"] is not None
    if study["status"] == "succeeded" and chooses and outcome["shipped"] is None:
        typer.echo(f"afluente: nothing to ship: {outcome['reason']}", err=True)
        raise typer.Exit(NOT_PASSED)
