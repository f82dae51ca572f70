"""`afluente wer`: the error rates of a merge, from the service, and a gate for automation."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Key, Url

if TYPE_CHECKING:
    from cli.client import Client

_EXIT_STATUS = (
    "Exit status: 0, also where no limit was given; 3 if a limit is not kept, or a set is missing "
    "or its newest evaluation partial, failed or not over; 1 if anything else is wrong."
)


class Format(StrEnum):
    """How to print them."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    HTML = "html"


def wer(
    merge_id: Annotated[str, typer.Argument(metavar="ID", help="The merge, mrg_...")],
    form: Annotated[
        Format, typer.Option("--format", help="table, json, csv, or a page in html.")
    ] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="File to write instead of printing.")] = None,
    normalizer: Annotated[
        str | None, typer.Option(help="Score again with this normaliser.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option(help="Only what this evaluation found, evl_...")
    ] = None,
    max_wer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SET=]RATE",
            help="Fail if the error rate of a set (of every set not named) is above this fraction; "
            "may be repeated.",
        ),
    ] = None,
    max_regression: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SET=]RATE",
            help="Fail if the error rate is more than this above that of --against, likewise.",
        ),
    ] = None,
    max_loops: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SET=]RATE",
            help="Fail if more than this fraction of a set's transcripts repeat themselves.",
        ),
    ] = None,
    max_words_on_silence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SET=]COUNT",
            help="Fail if more words than this are heard where nothing was said.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="What regressions are from: base, an expert or a merge; base if not given."
        ),
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Fail unless the gate in the request has passed.")
    ] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Print a merge's word error rates beside those of its base and experts; fail above limits."""
    from cli.client import Client
    from cli.gates import fail_unless_passed, limits, requested, verdict

    asked = limits(
        {
            "max_wer": max_wer,
            "max_regression": max_regression,
            "max_loops": max_loops,
            "max_words_on_silence": max_words_on_silence,
        },
        against,
    )
    path = f"/merges/{merge_id}/wer"
    query = {"normalizer": normalizer, "evaluation": evaluation}
    with Client(url, api_key) as client:
        document = client.get(path, **query) if gate or asked or _is_ours(form) else {}
        verdicts = [verdict(document, asked)] if asked else []
        verdicts += [requested(document)] if gate else []
        text = (
            _render(client, document, form)
            if _is_ours(form)
            else client.get_text(path, format=form.value, **query)
        )
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8", newline="")
    fail_unless_passed(verdicts)


wer.__doc__ = f"{wer.__doc__}\n\n{_EXIT_STATUS}"


def _is_ours(form: Format) -> bool:
    """Return whether the form is made here, from the document; the service makes the others."""
    return form in {Format.TABLE, Format.JSON}


def _render(client: Client, document: dict[str, Any], form: Format) -> str:
    import json

    from cli.tables import wer_table

    if form is Format.JSON:
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return wer_table(client, document, {})
