"""Whether the service has what it needs, and which version it is."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from app.contract.errors import AfluenteError, StorageError
from app.services.backend import Backend
from app.storage import fleet
from app.storage.database import clock

_LOG = logging.getLogger(__name__)
_SEEN_WITHIN_SECONDS = 15.0


def readiness(backend: Backend) -> dict[str, dict[str, Any]]:
    """Return, for each thing the service needs, whether it is there (`ok`) and a `detail`."""
    checks: dict[str, Callable[[Backend], str]] = {
        "database": _database,
        "broker": _broker,
        "artifact_store": _artifact_store,
        "worker": _worker,
    }
    return {name: _outcome(check, backend) for name, check in checks.items()}


def versions() -> dict[str, str]:
    """Return the version of the service and of what it runs on."""
    try:
        own = version("afluente")
    except PackageNotFoundError:  # run from a source tree that is not installed
        own = "0+unknown"
    return {"name": "afluente", "version": own, "python": platform.python_version()}


def _outcome(check: Callable[[Backend], str], backend: Backend) -> dict[str, Any]:
    try:
        return {"ok": True, "detail": check(backend)}
    except AfluenteError as error:
        return {"ok": False, "detail": error.message}
    except Exception:  # noqa: BLE001 - whatever a driver raises, the answer is "not ready"
        _LOG.warning("not ready", exc_info=True)
        return {"ok": False, "detail": "It does not answer; the log of the API says why."}


class _MissingError(AfluenteError):
    """Something is not there; only ever shown as a detail."""


def _database(backend: Backend) -> str:
    clock(backend.engine)
    return f"{backend.engine.dialect.name} answers."


def _broker(backend: Backend) -> str:
    if backend.queue is None:
        raise _MissingError("AFLUENTE_BROKER_URL is not set; merges are accepted, and wait.")
    depth = backend.queue.depth()
    if depth is None:
        raise _MissingError("The broker does not answer; merges are accepted, and wait.")
    return f"Answers; {depth} messages wait."


def _artifact_store(backend: Backend) -> str:
    try:
        backend.store.check()
    except StorageError as error:  # its message has the folder, and anyone may ask here
        _LOG.warning("not ready: %s", error.message)
        raise _MissingError("It cannot be written; the log of the API says why.") from None
    return "Can be written."


def _worker(backend: Backend) -> str:
    count = len(fleet.alive(backend.engine, _SEEN_WITHIN_SECONDS))
    if count == 0:
        raise _MissingError(
            f"No worker was seen in the last {_SEEN_WITHIN_SECONDS:.0f} seconds; start one with "
            "`afluente worker`."
        )
    return f"{count} seen in the last {_SEEN_WITHIN_SECONDS:.0f} seconds."
