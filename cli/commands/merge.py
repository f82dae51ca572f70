"""`afluente merge`: a merge in this process, without the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Device, Threads

Recipe = Annotated[
    Path, typer.Argument(help="JSON or YAML: the body of POST /merges; - reads standard input.")
]


def merge(
    recipe: Recipe,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must be new.")],
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Merge in this process, byte for byte as the service would."""
    from cli.configuration import load_settings
    from cli.progress import ProgressReport
    from cli.recipes import read_recipe

    document = read_recipe(recipe)
    settings = load_settings(device=device, threads=threads)
    with ProgressReport() as report:
        from worker.merging.local import merge_recipe

        result = merge_recipe(document, output, settings, report.advance)
    for warning in result.warnings:
        typer.echo(f"warning: {warning['message']}", err=True)
    for file in result.files:
        typer.echo(f"{file['sha256']}  {file['bytes']:>12}  {output / file['name']}")
