"""`afluente worker`: one worker alone, against a database and a queue that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DataDir, Device, LogLevel, Threads

if TYPE_CHECKING:
    from app.contract.settings import Settings


def worker(
    data_dir: DataDir = None,
    device: Device = None,
    threads: Threads = None,
    log_level: LogLevel = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether a worker of this host is alive.")
    ] = False,
) -> None:
    """Run one worker (AFLUENTE_DATABASE_URL, AFLUENTE_BROKER_URL): one job at a time."""
    from app.contract.errors import NotReadyError
    from cli.configuration import load_settings

    settings = load_settings(data_dir=data_dir, device=device, threads=threads, log_level=log_level)
    if check:
        _check(settings)
        return
    if settings.broker is None:
        raise NotReadyError(
            "A worker needs a queue: set AFLUENTE_BROKER_URL (redis://...), or run `afluente up`, "
            "which brings one along."
        )
    from worker.supervisor import main

    raise typer.Exit(main(settings))


def _check(settings: Settings) -> None:
    """Raise NotReadyError unless a worker of this host was seen a moment ago."""
    import socket

    from app.contract.errors import NotReadyError
    from app.storage import fleet
    from app.storage.database import connect

    engine = connect(settings.database)
    try:
        rounds = 5 * settings.sweep_seconds
        hosts = {row["host"] for row in fleet.alive(engine, rounds)}
    finally:
        engine.dispose()
    if socket.gethostname() not in hosts:
        raise NotReadyError(f"No worker of {socket.gethostname()} was seen in {rounds:.0f} s.")
    typer.echo("a worker is alive")
