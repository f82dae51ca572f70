"""Whether the service has what it needs, and which version it is."""

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
# How long an answer counts; a probe may come as often as it likes.
_FRESH_SECONDS = 1.0
# How long whoever asks waits, whatever hangs.
_PATIENCE_SECONDS = 3.0
_KNOWN_SECONDS = 5.0
_SHORT_PATIENCE_SECONDS = 0.3
# A start takes a while; what lacks for longer is worth a line in the log.
_LOG_AFTER_SECONDS = 30.0
# How long a page that could not be read is remembered.
_DAMAGE_SECONDS = 60.0


class Outcome(TypedDict):
    """What one check found; `detail` is for anyone to read, without secrets and paths."""

    ok: bool
    detail: str


class Readiness:
    """Whether jobs can be taken, done and stored: checked when asked, in threads of its own.

    No check is under way twice, and nobody waits long for one that hangs.
    """

    def __init__(
        self, settings: Settings, engine: Engine, queue: Queue | None, host: str | None = None
    ) -> None:
        """With a `host`, only workers there count."""
        self._settings, self._engine, self._queue, self._host = settings, engine, queue, host
        self._checks = {
            "database": _Check(self._database),
            "broker": _Check(self._broker),
            "artifact_store": _Check(self._disks),
            "worker": _Check(self._worker),
        }
        self._damaged_until = 0.0
        self._lock = threading.Lock()
        self._lacks_since: float | None = None
        self._is_logged = False

    def outcomes(self) -> dict[str, Outcome]:
        """Return the outcome of each check, within seconds: what hangs is not there."""
        found = self._ask(_PATIENCE_SECONDS)
        hangs = Outcome(ok=False, detail=f"No answer in {_PATIENCE_SECONDS:.0f} seconds.")
        outcomes = {name: outcome or hangs for name, outcome in found.items()}
        self._log(lacks(outcomes))
        return outcomes

    def obstacle(self) -> str | None:
        """Return why a queued job cannot be done now, as far as that is known; None if it can."""
        # A request does not wait for what was known a moment ago.
        known_lately = all(check.age() < _KNOWN_SECONDS for check in self._checks.values())
        found = self._ask(0.0 if known_lately else _SHORT_PATIENCE_SECONDS)
        known = {name: outcome or self._checks[name].last for name, outcome in found.items()}
        what = lacks({name: outcome for name, outcome in known.items() if outcome})
        self._log(what)
        return what or None

    def note_damage(self) -> None:
        """Remember that a part of the database could not be read, which a check may not touch."""
        self._damaged_until = time.monotonic() + _DAMAGE_SECONDS

    def _ask(self, patience_seconds: float) -> dict[str, Outcome | None]:
        for check in self._checks.values():
            check.start()
        deadline = time.monotonic() + patience_seconds
        return {name: check.wait(deadline) for name, check in self._checks.items()}

    def _log(self, what: str) -> None:
        """Say once that something lacks, and once that it is there again."""
        now = time.monotonic()
        with self._lock:
            if not what:
                if self._is_logged:
                    _LOG.warning("ready again")
                self._lacks_since, self._is_logged = None, False
                return
            self._lacks_since = self._lacks_since or now
            if now - self._lacks_since < _LOG_AFTER_SECONDS or self._is_logged:
                return
            self._is_logged = True
        _LOG.error("not ready, jobs wait: %s", what)

    def _database(self) -> str:
        database.check(self._engine)
        if time.monotonic() < self._damaged_until:
            raise NotReadyError(database.DAMAGED)
        return f"{self._engine.dialect.name} answers."

    def _broker(self) -> str:
        if self._queue is None:
            raise NotReadyError("AFLUENTE_BROKER_URL is not set; merges are accepted, and wait.")
        if problem := self._queue.problem():
            raise NotReadyError(f"{problem} Merges are accepted, and wait.")
        return f"Answers; {self._queue.depth()} messages wait."

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
            except StorageError as error:  # its message has the folder, and anyone may ask here
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
                f"{_SEEN_WITHIN_SECONDS:.0f} seconds; start one with `afluente worker`, or see in "
                "its log why it cannot."
            )
        return f"{count}{where} seen in the last {_SEEN_WITHIN_SECONDS:.0f} seconds."


class _Check:
    """One question, asked by one thread at a time; an answer counts for a second."""

    def __init__(self, ask: Callable[[], str]) -> None:
        self.last: Outcome | None = None
        self._question = ask
        self._answered_at = -math.inf
        self._lock = threading.Lock()
        self._answered = threading.Event()
        self._answered.set()

    def age(self) -> float:
        """Return for how many seconds the answer has been known; infinity if there is none."""
        return time.monotonic() - self._answered_at

    def start(self) -> None:
        """Ask, unless the answer is fresh or on its way."""
        with self._lock:
            if self.age() < _FRESH_SECONDS or not self._answered.is_set():
                return
            self._answered.clear()
        # A daemon: one that hangs for ever does not keep the process from ending.
        threading.Thread(target=self._ask, name="readiness", daemon=True).start()

    def wait(self, deadline: float) -> Outcome | None:
        """Return the answer, or None if it has not come by `deadline` (monotonic)."""
        if self._answered.wait(max(0.0, deadline - time.monotonic())):
            return self.last
        return None

    def _ask(self) -> None:
        try:
            self.last = Outcome(ok=True, detail=self._question())
        except AfluenteError as error:
            self.last = Outcome(ok=False, detail=error.message)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, the answer is "not ready"
            why = database.reason(error)
            if why is None:
                _LOG.warning("not ready", exc_info=True)
            detail = why or "It does not answer; the log of the API says why."
            self.last = Outcome(ok=False, detail=detail)
        finally:
            self._answered_at = time.monotonic()
            self._answered.set()


def lacks(outcomes: dict[str, Outcome]) -> str:
    """Return what is not there and why, in one line; empty if all is."""
    return " ".join(
        f"{name}: {outcome['detail']}" for name, outcome in outcomes.items() if not outcome["ok"]
    )


def versions() -> dict[str, str]:
    """Return the version of the service and of what it runs on."""
    try:
        own = version("afluente")
    except PackageNotFoundError:  # run from a source tree that is not installed
        own = "0+unknown"
    return {"name": "afluente", "version": own, "python": platform.python_version()}
