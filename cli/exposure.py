"""Refuses to expose a service without API keys to the network."""

from __future__ import annotations

from app.contract.hosts import is_loopback_name
from app.contract.settings import Settings


def refuse_open_service(settings: Settings) -> None:
    """Raise ForbiddenError if others could reach the API and no API key exists."""
    from app.services.access import refuse_open_exposure
    from app.storage.database import connect, migrate

    if is_loopback_name(settings.host):
        return
    engine = connect(settings.database)
    try:
        migrate(engine)
        refuse_open_exposure(settings, engine)
    finally:
        engine.dispose()
