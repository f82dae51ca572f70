"""Options shared by several commands, and what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder for all data (AFLUENTE_DATA_DIR, ./afluente-data)."),
]
Host = Annotated[str | None, typer.Option(help="Address to listen on (AFLUENTE_HOST, 127.0.0.1).")]
Port = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one (AFLUENTE_PORT, 8000)."),
]
LogLevel = Annotated[
    str | None, typer.Option(help="debug, info, warning or error (AFLUENTE_LOG_LEVEL, info).")
]
Device = Annotated[
    str | None, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:0 (AFLUENTE_DEVICE).")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Tensors merged at the same time on a CPU (AFLUENTE_THREADS)."),
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="AFLUENTE_URL",
        help="URL of the service. Default: the running `afluente up` of the data folder, else "
        "http://127.0.0.1:8000.",
    ),
]
Key = Annotated[
    str | None, typer.Option("--api-key", envvar="AFLUENTE_API_KEY", help="API key, if required.")
]
Evaluation = Annotated[str | None, typer.Option(help="Only results of this evaluation, evl_...")]
Output = Annotated[Path | None, typer.Option(help="File to write instead of printing.")]


def write_output(text: str, output: Path | None) -> None:
    """Print a text as it is, or write it to the file of `--output`."""
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8", newline="")
