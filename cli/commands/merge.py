"""`afluente merge`: a merge or a sweep in this process, without the service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Device, Threads

if TYPE_CHECKING:
    from worker.merging.local import LocalMerge

Recipe = Annotated[
    Path, typer.Argument(help="JSON or YAML: the body of POST /merges; - reads standard input.")
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        help="A parameter with several values, each merged into its own folder: beta=0.1,0.3 or "
        "scaling_coefficient=0.1:1.0:0.1 (first:last:step). Several options make a grid; a recipe "
        "may have lists instead.",
    ),
]


def merge(
    recipe: Recipe,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    sweep: Sweep = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Merge in this process, with the same bytes as the service."""
    from app.contract.sweeps import lists_in
    from cli.configuration import SERVICE_ONLY, load_settings
    from cli.progress import ProgressReport
    from cli.recipes import read_recipe
    from cli.sweeps import read_sweeps

    document = read_recipe(recipe)
    swept = read_sweeps(sweep or [])
    settings = load_settings(SERVICE_ONLY, device=device, threads=threads)

    from worker.merging.local import merge_recipe, threads_of, working_memory

    def gather(*given: Any) -> Any:
        from worker.calibration.gather import gatherer  # it takes seconds, and is rarely needed

        return gatherer(settings)(*given)

    memory = f"{working_memory(settings) // 2**20:,} MiB of working memory"
    with ProgressReport(f"{threads_of(settings)} threads, {memory}") as report:
        if swept or lists_in(document):
            from worker.merging.sweep import sweep_recipe

            merges = sweep_recipe(document, swept, output, settings, report.advance, gather).merges
        else:
            merges = {"": merge_recipe(document, output, settings, report.advance, gather)}
    _show_warnings(merges)
    for point, result in merges.items():
        for file in result.files:
            if point and not file["name"].endswith(".safetensors"):
                continue  # sweep.json lists them all
            typer.echo(f"{file['sha256']}  {file['bytes']:>12}  {result.folder / file['name']}")


def _show_warnings(merges: Mapping[str, LocalMerge]) -> None:
    """Show each warning once, with the points of a sweep that have it, unless all do."""
    points: dict[str, list[str]] = {}
    for name, result in merges.items():
        for warning in result.warnings:
            points.setdefault(warning["message"], []).append(name)
    for message, names in points.items():
        where = "" if len(names) == len(merges) else f"{'; '.join(names)}: "
        typer.echo(f"warning: {where}{message}", err=True)
