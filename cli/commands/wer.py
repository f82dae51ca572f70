"""`afluente wer`: a merge's error rates from the service, with limits for automation."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Evaluation, Key, Output, Url, write_output

if TYPE_CHECKING:
    from cli.client import Client

_EXIT_STATUS = (
    "Exit status: 0 if all limits are met, or none is given; 3 if a limit is exceeded, or a "
    "dataset is missing or its newest evaluation partial, failed or unfinished; 1 for any other "
    "failure."
)


class Format(StrEnum):
    """The output format."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    HTML = "html"
    EVAL_RESULTS = "eval_results"


def wer(
    merge_id: Annotated[str, typer.Argument(metavar="ID", help="The merge, mrg_...")],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="table, json, csv, html (a page), or eval_results (a model's "
            ".eval_results/*.yaml on the Hugging Face hub).",
        ),
    ] = Format.TABLE,
    output: Output = None,
    normalizer: Annotated[
        str | None, typer.Option(help="Score with this normaliser instead.")
    ] = None,
    evaluation: Evaluation = None,
    max_wer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SET=]RATE",
            help="Fail if a dataset's error rate is above this fraction; without SET=, for all "
            "datasets not named. May be repeated.",
        ),
    ] = None,
    max_regression: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SET=]RATE",
            help="Fail if the error rate exceeds that of --against by more than this fraction.",
        ),
    ] = None,
    max_loops: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SET=]RATE",
            help="Fail if more than this fraction of a dataset's transcripts repeat themselves.",
        ),
    ] = None,
    max_words_on_silence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SET=]COUNT",
            help="Fail if more words than this are transcribed in silence.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="The system for --max-regression: base (the default), an expert or a merge."
        ),
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Fail unless the gate in the request has passed.")
    ] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Print the word error rates of a merge, its base and experts; fail if limits are exceeded."""
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
        document = client.get(path, **query) if gate or asked or _is_rendered_here(form) else {}
        verdicts = [verdict(document, asked)] if asked else []
        verdicts += [requested(document)] if gate else []
        text = (
            _render(client, document, form)
            if _is_rendered_here(form)
            else client.get_text(path, format=form.value, **query)
        )
    write_output(text, output)
    fail_unless_passed(verdicts)


wer.__doc__ = f"{wer.__doc__}\n\n{_EXIT_STATUS}"


def _is_rendered_here(form: Format) -> bool:
    """Return whether the command line renders this format, not the service."""
    return form in {Format.TABLE, Format.JSON}


def _render(client: Client, document: dict[str, Any], form: Format) -> str:
    import json

    from cli.tables import wer_table

    if form is Format.JSON:
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return wer_table(client, document, {})
