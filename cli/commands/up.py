"""`afluente up`: the whole service on this machine, as one supervised group."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import DataDir, Device, Host, LogLevel, Port


def up(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    device: Device = None,
    log_level: LogLevel = None,
) -> None:
    """Run queue, workers and API until Ctrl-C; jobs from earlier runs continue."""
    from app.contract.errors import StorageError
    from cli.configuration import load_settings
    from cli.exposure import refuse_open_service
    from cli.stack.group import ProcessGroup, listen
    from cli.stack.lock import lock

    settings = load_settings(
        host=host, port=port, data_dir=data_dir, device=device, log_level=log_level
    )
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The data folder {settings.data} cannot be created: {error.strerror}; choose another "
            "with --data-dir."
        ) from None
    held = lock(settings.data)
    refuse_open_service(settings)
    with listen(settings.host, settings.port) as listener:
        ProcessGroup(settings, listener, held, workers, _say).run()


def _say(text: str) -> None:
    typer.echo(text if "\n" in text else f"afluente up: {text}")
