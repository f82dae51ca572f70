"""`afluente wer`: the error rates of a merge, from the service."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cli.options import Key, Url


class Format(StrEnum):
    """How to print them."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def wer(
    merge_id: Annotated[str, typer.Argument(metavar="ID", help="The merge, mrg_...")],
    form: Annotated[Format, typer.Option("--format", help="table, json or csv.")] = Format.TABLE,
    normalizer: Annotated[
        str | None, typer.Option(help="Score again with this normaliser.")
    ] = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Print a merge's word error rates beside those of its base and experts."""
    import json

    from app.reports.rendering import render_table
    from cli.client import Client

    path = f"/merges/{merge_id}/wer"
    with Client(url, api_key) as client:
        if form is Format.CSV:
            typer.echo(client.get_text(path, format="csv", normalizer=normalizer), nl=False)
            return
        document = client.get(path, normalizer=normalizer)
    if form is Format.JSON:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        typer.echo(render_table(document), nl=False)
