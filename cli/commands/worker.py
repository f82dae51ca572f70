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
        bool, typer.Option("--check", help="Only say whether a worker of this host takes jobs.")
    ] = False,
) -> None:
    """Run one worker (AFLUENTE_DATABASE_URL, AFLUENTE_BROKER_URL): one job at a time."""
    from app.contract.errors import NotReadyError
    from cli.configuration import API_ONLY, load_settings

    settings = load_settings(
        API_ONLY, data_dir=data_dir, device=device, threads=threads, log_level=log_level
    )
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
    """Raise NotReadyError unless a worker of this host takes jobs, and has what they need."""
    import socket

    from app.contract.errors import NotReadyError
    from app.services.health import Readiness, lacks
    from app.storage.database import connect
    from app.storage.queue import Queue

    engine = connect(settings.database)
    try:
        queue = Queue(settings.broker) if settings.broker else None
        outcomes = Readiness(settings, engine, queue, socket.gethostname()).outcomes()
    finally:
        engine.dispose()
    if lacking := lacks(outcomes):
        raise NotReadyError(f"Not ready. {lacking}")
    typer.echo("a worker is alive, and takes jobs")
