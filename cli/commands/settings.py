"""`afluente settings`: every setting with its default and description."""

from __future__ import annotations

import typer


def settings() -> None:
    """List every AFLUENTE_* environment variable with its default."""
    from cli.reference import settings_rows

    for variable, default, description in settings_rows():
        typer.echo(f"{variable} (default: {default})\n    {description}")
