"""`afluente api`: the REST API alone, against a database and a queue that are there."""

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
    """Run the REST API alone (AFLUENTE_DATABASE_URL, AFLUENTE_BROKER_URL)."""
    import socket

    import uvicorn

    from cli.configuration import load_settings
    from cli.exposure import refuse_open_service
    from cli.punctual import punctual

    settings = load_settings(host=host, port=port, data_dir=data_dir, log_level=log_level)
    refuse_open_service(settings)
    # Made from the environment, which has this command's options by now.
    from app.main import app

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        server_header=False,
        workers=1,  # or uvicorn takes WEB_CONCURRENCY, which is another application's
        http=punctual(settings.request_seconds),
        # What proxies say of clients is looked at by the application itself.
        proxy_headers=False,
        # Event streams never end by themselves.
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    # `afluente up` hands over a socket that listens already.
    sockets = None if descriptor is None else [socket.socket(fileno=descriptor)]
    uvicorn.Server(config).run(sockets)
