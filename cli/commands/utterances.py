"""`afluente utterances`: a system's scored utterances from the service, for other tools."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.options import Key, Url


class Form(StrEnum):
    """The formats of an export."""

    JSONL = "jsonl"
    TRN = "trn"
    STM = "stm"
    SEGLST = "seglst"
    NEMO = "nemo"


class Side(StrEnum):
    """Which text a format with one text has."""

    REFERENCE = "reference"
    HYPOTHESIS = "hypothesis"


def utterances(
    merge_id: Annotated[str, typer.Argument(metavar="ID", help="The merge, mrg_...")],
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="jsonl (all fields); trn or stm (sclite); seglst (meeteval); nemo (a manifest "
            "with pred_text).",
        ),
    ] = Form.JSONL,
    system: Annotated[
        str | None, typer.Option(help="merge (the default), base, an expert or a merge.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="One dataset; default: all.")] = None,
    side: Annotated[
        Side, typer.Option(help="The text for trn, stm and seglst: reference or hypothesis.")
    ] = Side.HYPOTHESIS,
    normalizer: Annotated[
        str | None, typer.Option(help="Score with this normaliser instead; none: raw texts.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option(help="Only results of this evaluation, evl_...")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write instead of printing.")] = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Print the transcripts of a merge, its base or an expert, with their references."""
    from cli.client import Client

    with Client(url, api_key) as client:
        text = client.get_text(
            f"/merges/{merge_id}/wer/utterances",
            format=form.value,
            system=system,
            dataset=dataset,
            side=side.value,
            normalizer=normalizer,
            evaluation=evaluation,
        )
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8", newline="")
