"""Keeps a service without API keys off the network."""

from __future__ import annotations

import ipaddress

from app.contract.errors import UnauthorizedError
from app.contract.settings import Settings


def refuse_open_service(settings: Settings) -> None:
    """Raise UnauthorizedError if others could reach the API and no API key exists."""
    if _is_loopback(settings.host):
        return
    from app.storage import keys
    from app.storage.database import connect, migrate

    engine = connect(settings.database)
    try:
        migrate(engine)
        if not keys.any_active(engine):
            raise UnauthorizedError(
                f"Others can reach {settings.host}, and there is no API key: make one with "
                "`afluente keys create NAME`, or listen on 127.0.0.1."
            )
    finally:
        engine.dispose()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
