"""`afluente methods`: the merge methods and their parameters."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def methods(
    name: Annotated[str | None, typer.Argument(help="The method to describe.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, as the API does.")] = False,
) -> None:
    """List the merge methods, or describe one."""
    import json

    from app.contract.catalogue import CATALOGUE, describe, parse_method

    chosen = [parse_method(name)] if name else list(CATALOGUE.values())
    found = [describe(method) for method in chosen]
    if json_:
        document = found[0] if name else {"data": found}
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    elif name:
        _print_method(found[0])
    else:
        width = max(len(method["name"]) for method in found)
        for method in found:
            typer.echo(f"{method['name']:<{width}}  {method['summary']}")


def _print_method(method: dict[str, Any]) -> None:
    paper, experts = method["paper"], method["experts"]
    most = f" to {experts['most']}" if experts["most"] else " or more"
    typer.echo(f"{method['name']}: {method['title']}\n{method['summary']}\n")
    typer.echo(f"paper    {paper['authors']} ({paper['year']}), {paper['title']}, {paper['url']}")
    typer.echo(f"experts  {experts['least']}{most}")
    typer.echo(f"base     {method['base']}")
    typer.echo(f"weights  {'used' if method['weights'] else 'refused'}")
    if method["needs_calibration"]:
        typer.echo("needs    calibration sets: speech of each expert's domain")
    typer.echo()
    for name, field in method["parameters"].get("properties", {}).items():
        default = field.get("default", "required")
        typer.echo(f"{name} (default {default}): {field.get('description', '')}")
