"""`afluente api`: runs only the REST API, with an existing database and queue."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import DataDir, Host, LogLevel, Port

_SHUTDOWN_SECONDS = 3


def api(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    log_level: LogLevel = None,
    descriptor: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run only the REST API (AFLUENTE_DATABASE_URL, AFLUENTE_BROKER_URL)."""
    import socket

    import uvicorn

    from cli.configuration import load_settings
    from cli.deadlines import with_deadline
    from cli.exposure import refuse_open_service

    settings = load_settings(host=host, port=port, data_dir=data_dir, log_level=log_level)
    refuse_open_service(settings)
    # Imported late: it reads the environment, which now has this command's options.
    from app.main import app

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        server_header=False,
        workers=1,  # do not read another application's WEB_CONCURRENCY
        http=with_deadline(settings.request_seconds),
        # The application checks proxies' headers itself.
        proxy_headers=False,
        # Event streams do not end by themselves.
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    # `afluente up` passes a listening socket.
    sockets = None if descriptor is None else [socket.socket(fileno=descriptor)]
    uvicorn.Server(config).run(sockets)
