"""`afluente worker`: one worker alone, against a database and a queue that are there."""

from __future__ import annotations

import typer

from cli.options import DataDir, Device, LogLevel, Threads


def worker(
    data_dir: DataDir = None,
    device: Device = None,
    threads: Threads = None,
    log_level: LogLevel = None,
) -> None:
    """Run one worker (AFLUENTE_DATABASE_URL, AFLUENTE_BROKER_URL): one job at a time."""
    from app.contract.errors import NotReadyError
    from cli.configuration import load_settings

    settings = load_settings(data_dir=data_dir, device=device, threads=threads, log_level=log_level)
    if settings.broker is None:
        raise NotReadyError(
            "A worker needs a queue: set AFLUENTE_BROKER_URL (redis://...), or run `afluente up`, "
            "which brings one along."
        )
    from worker.supervisor import main

    raise typer.Exit(main(settings))
