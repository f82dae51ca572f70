"""The service's readiness and version."""

from __future__ import annotations

import logging
import math
import platform
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

from sqlalchemy import Engine

from app.contract.errors import AfluenteError, NotReadyError, StorageError
from app.contract.settings import Settings
from app.storage import database, fleet
from app.storage.artifacts import check_disk, is_full
from app.storage.queue import Queue

_LOG = logging.getLogger(__name__)
_SEEN_WITHIN_SECONDS = 15.0
# How long an outcome is reused, so that frequent probes are cheap.
_FRESH_SECONDS = 1.0
# The longest wait for the checks.
_PATIENCE_SECONDS = 3.0
_KNOWN_SECONDS = 5.0
_SHORT_PATIENCE_SECONDS = 0.3
# Failures during a start are normal; longer ones are logged.
_LOG_AFTER_SECONDS = 30.0
# How long an unreadable database page counts as damage.
_DAMAGE_SECONDS = 60.0


class CheckOutcome(TypedDict):
    """The outcome of a check; `detail` is public, without secrets and paths."""

    ok: bool
    detail: str


class Readiness:
    """Checks, on request, whether jobs can be accepted, run and stored.

    Each check runs in its own thread, one at a time, so that callers need not wait for one that
    hangs.
    """

    def __init__(
        self, settings: Settings, engine: Engine, queue: Queue | None, host: str | None = None
    ) -> None:
        """Create the checks; with a `host`, only workers on that host count."""
        self._settings, self._engine, self._queue, self._host = settings, engine, queue, host
        self._checks = {
            "database": _Check(self._database),
            "broker": _Check(self._broker),
            "artifact_store": _Check(self._disks),
            "worker": _Check(self._worker),
        }
        self._damaged_until = 0.0
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._is_logged = False

    def outcomes(self) -> dict[str, CheckOutcome]:
        """Return the outcome of each check within seconds; a check that hangs has failed."""
        found = self._ask(_PATIENCE_SECONDS)
        hangs = CheckOutcome(ok=False, detail=f"No response in {_PATIENCE_SECONDS:.0f} seconds.")
        outcomes = {name: outcome or hangs for name, outcome in found.items()}
        self._log(describe_failures(outcomes))
        return outcomes

    def obstacle(self) -> str | None:
        """Return why a queued job cannot run now, from the latest outcomes; None if it can."""
        # Do not wait if recent outcomes are known.
        known_lately = all(check.age() < _KNOWN_SECONDS for check in self._checks.values())
        found = self._ask(0.0 if known_lately else _SHORT_PATIENCE_SECONDS)
        known = {name: outcome or self._checks[name].last for name, outcome in found.items()}
        failures = describe_failures({name: one for name, one in known.items() if one})
        self._log(failures)
        return failures or None

    def note_damage(self) -> None:
        """Report the database as damaged for a while: the check may not read the damaged page."""
        self._damaged_until = time.monotonic() + _DAMAGE_SECONDS

    def _ask(self, patience_seconds: float) -> dict[str, CheckOutcome | None]:
        for check in self._checks.values():
            check.start()
        deadline = time.monotonic() + patience_seconds
        return {name: check.wait(deadline) for name, check in self._checks.items()}

    def _log(self, failures: str) -> None:
        """Log a lasting failure once, and recovery once."""
        now = time.monotonic()
        with self._lock:
            if not failures:
                if self._is_logged:
                    _LOG.warning("ready again")
                self._failing_since, self._is_logged = None, False
                return
            self._failing_since = self._failing_since or now
            if now - self._failing_since < _LOG_AFTER_SECONDS or self._is_logged:
                return
            self._is_logged = True
        _LOG.error("not ready, jobs wait: %s", failures)

    def _database(self) -> str:
        database.check(self._engine)
        if time.monotonic() < self._damaged_until:
            raise NotReadyError(database.DAMAGED)
        return f"{self._engine.dialect.name} responds."

    def _broker(self) -> str:
        if self._queue is None:
            raise NotReadyError("AFLUENTE_BROKER_URL is not set; merges are accepted, but wait.")
        if problem := self._queue.problem():
            raise NotReadyError(f"{problem} Merges are accepted, but wait.")
        return f"Responds; {self._queue.depth()} messages are waiting."

    def _disks(self) -> str:
        places = {
            "AFLUENTE_ARTIFACT_DIR": self._settings.artifacts,
            "AFLUENTE_CACHE_DIR": self._settings.cache,
        }
        if isinstance(self._settings.database, Path):
            places["AFLUENTE_DATA_DIR"] = self._settings.data
        for setting, folder in places.items():
            try:
                check_disk(folder, setting)
            except StorageError as error:  # its message has the path, which is not public
                _LOG.info("not ready: %s", error.message)
                kind = "is full" if is_full(error.__cause__) else "cannot be written"
                raise NotReadyError(f"The disk of {setting} {kind}.") from None
        return "Can be written."

    def _worker(self) -> str:
        seen = fleet.alive(self._engine, _SEEN_WITHIN_SECONDS)
        count = len([row for row in seen if self._host in {None, row["host"]}])
        where = f" of {self._host}" if self._host else ""
        if count == 0:
            raise NotReadyError(
                f"No worker{where} that can take a job was seen in the last "
                f"{_SEEN_WITHIN_SECONDS:.0f} seconds; start one with `afluente worker`, or check "
                "its log."
            )
        return f"{count}{where} seen in the last {_SEEN_WITHIN_SECONDS:.0f} seconds."


class _Check:
    """A check that runs in one thread at a time; its outcome is reused for a second."""

    def __init__(self, check: Callable[[], str]) -> None:
        self.last: CheckOutcome | None = None
        self._check = check
        self._finished_at = -math.inf
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._finished.set()

    def age(self) -> float:
        """Return the age of the outcome in seconds; infinity if there is none."""
        return time.monotonic() - self._finished_at

    def start(self) -> None:
        """Start the check, unless it is running or its outcome is fresh."""
        with self._lock:
            if self.age() < _FRESH_SECONDS or not self._finished.is_set():
                return
            self._finished.clear()
        # A daemon thread, so that a check that hangs does not keep the process alive.
        threading.Thread(target=self._run, name="readiness", daemon=True).start()

    def wait(self, deadline: float) -> CheckOutcome | None:
        """Return the outcome, or None if the check is still running at `deadline` (monotonic)."""
        if self._finished.wait(max(0.0, deadline - time.monotonic())):
            return self.last
        return None

    def _run(self) -> None:
        try:
            self.last = CheckOutcome(ok=True, detail=self._check())
        except AfluenteError as error:
            self.last = CheckOutcome(ok=False, detail=error.message)
        except Exception as error:  # noqa: BLE001 - any error of a driver means "not ready"
            why = database.reason(error)
            if why is None:
                _LOG.warning("not ready", exc_info=True)
            detail = why or "It does not respond; the API's log has the reason."
            self.last = CheckOutcome(ok=False, detail=detail)
        finally:
            self._finished_at = time.monotonic()
            self._finished.set()


def describe_failures(outcomes: dict[str, CheckOutcome]) -> str:
    """Return the failed checks with their details, in one line; empty if all passed."""
    return " ".join(
        f"{name}: {outcome['detail']}" for name, outcome in outcomes.items() if not outcome["ok"]
    )


def versions() -> dict[str, str]:
    """Return the versions of the service and of Python."""
    try:
        own = version("afluente")
    except PackageNotFoundError:  # not installed: run from a source tree
        own = "0+unknown"
    return {"name": "afluente", "version": own, "python": platform.python_version()}
