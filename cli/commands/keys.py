"""`afluente keys`: creates, lists and revokes API keys in the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DataDir

if TYPE_CHECKING:
    from sqlalchemy import Engine

application = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")


@application.command("create")
def create(
    name: Annotated[str, typer.Argument(help="The key's name in lists.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read, write or admin; may be repeated. Default: write."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Create a key and print it, once: only its digest is stored."""
    from app.contract.errors import InvalidRequestError, Problem
    from app.storage import keys

    scopes = scope or ["write"]
    if unknown := sorted(set(scopes) - set(keys.SCOPES)):
        message = f"Unknown scope {', '.join(unknown)}; known: {', '.join(keys.SCOPES)}."
        raise InvalidRequestError.of([Problem(message, "--scope")])
    with _database(data_dir) as engine:
        key_id, secret = keys.create(engine, name, scopes)
    typer.echo(
        f"{key_id} has scope {', '.join(sorted(scopes))}; the key is shown only once:", err=True
    )
    typer.echo(secret)


@application.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """List all keys without their secrets."""
    from datetime import UTC, datetime

    from app.storage import keys

    with _database(data_dir) as engine:
        for row in keys.every(engine):
            made = datetime.fromtimestamp(row["created_at"], UTC)
            state = "revoked" if row["revoked_at"] else "active"
            scopes = ",".join(row["scopes"])
            typer.echo(f"{row['id']}  {state:<7}  {made:%Y-%m-%d}  {scopes:<10}  {row['name']}")


@application.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, key_...")],
    data_dir: DataDir = None,
) -> None:
    """Revoke a key for good; calls need a key even after the last one is revoked."""
    from app.contract.errors import NotFoundError
    from app.storage import keys

    with _database(data_dir) as engine:
        if not keys.revoke(engine, key_id):
            raise NotFoundError(f"No active key {key_id}; `afluente keys list` shows all keys.")
        last = not keys.any_active(engine)
    typer.echo(f"{key_id} is revoked.")
    if last:
        typer.echo("It was the last: the API refuses all calls until you create another.", err=True)


@contextmanager
def _database(data_dir: object) -> Iterator[Engine]:
    from app.storage.database import connect, migrate
    from cli.configuration import load_settings, only

    engine = connect(load_settings(only("data_dir", "database_url"), data_dir=data_dir).database)
    try:
        migrate(engine)
        yield engine
    finally:
        engine.dispose()
