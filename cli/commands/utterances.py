"""`afluente utterances`: a system's scored utterances from the service, for other tools."""

from __future__ import annotations

from typing import Annotated

import typer

from app.reports.exports import ExportFormat, Side
from cli.options import Evaluation, Key, Output, Url, write_output


def utterances(
    merge_id: Annotated[str, typer.Argument(metavar="ID", help="The merge, mrg_...")],
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="jsonl (all fields); trn or stm (sclite); seglst (meeteval); nemo (a manifest "
            "with pred_text).",
        ),
    ] = "jsonl",
    system: Annotated[
        str | None, typer.Option(help="merge (the default), base, an expert or a merge.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="One dataset; default: all.")] = None,
    side: Annotated[
        Side, typer.Option(help="The text for trn, stm and seglst: reference or hypothesis.")
    ] = "hypothesis",
    normalizer: Annotated[
        str | None, typer.Option(help="Score with this normaliser instead; none: raw texts.")
    ] = None,
    evaluation: Evaluation = None,
    output: Output = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Print the transcripts of a merge, its base or an expert, with their references."""
    from cli.client import Client

    with Client(url, api_key) as client:
        text = client.get_text(
            f"/merges/{merge_id}/wer/utterances",
            format=form,
            system=system,
            dataset=dataset,
            side=side,
            normalizer=normalizer,
            evaluation=evaluation,
        )
    write_output(text, output)
