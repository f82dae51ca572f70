"""`afluente worker`: runs one worker, with an existing database and queue."""

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
        bool, typer.Option("--check", help="Only check whether a worker on this host takes jobs.")
    ] = False,
) -> None:
    """Run one worker (AFLUENTE_DATABASE_URL, AFLUENTE_BROKER_URL) for one job at a time."""
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
            "which includes one."
        )
    from worker.supervisor import main

    raise typer.Exit(main(settings))


def _check(settings: Settings) -> None:
    """Raise NotReadyError unless a worker on this host takes jobs and all checks pass."""
    import socket

    from app.contract.errors import NotReadyError
    from app.services.health import Readiness, describe_failures
    from app.storage.database import connect
    from app.storage.queue import Queue

    engine = connect(settings.database)
    try:
        queue = Queue(settings.broker) if settings.broker else None
        outcomes = Readiness(settings, engine, queue, socket.gethostname()).outcomes()
    finally:
        engine.dispose()
    if failures := describe_failures(outcomes):
        raise NotReadyError(f"Not ready. {failures}")
    typer.echo("a worker is alive and takes jobs")
