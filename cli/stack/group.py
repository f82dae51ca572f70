"""The supervised processes of `afluente up`: queue, workers and API."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from app.contract.errors import NotReadyError
from app.contract.settings import Settings
from app.storage import fleet
from app.storage.database import AWAY, connect, migrate
from cli.stack import readiness
from cli.stack.valkey import Valkey
from worker.processes.children import Child, reap_orphans, stop

_TICK_SECONDS = 0.1
_API_GRACE_SECONDS = 10.0
# Time for a worker to end after AFLUENTE_STOP_SECONDS.
_WORKER_MARGIN_SECONDS = 8.0
# A worker's first start may import torch from a cold disk.
_PATIENCE_SECONDS = 120.0
_STATE_FILE = "up.json"


@dataclass
class ProcessGroup:
    """Starts all processes, restarts those that die, and stops them in order."""

    settings: Settings
    listener: socket.socket
    lock: int
    workers: int
    say: Callable[[str], None]
    valkey: Valkey | None = None
    _stages: list[list[Child]] = field(default_factory=list)
    _stopping: bool = False

    def run(self) -> None:
        """Run until SIGINT or SIGTERM; a second signal kills the remaining processes."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop_soon)
        self._state_path.unlink(missing_ok=True)  # left by a killed `afluente up`
        self._prepare_database()
        self._stages = self._children()
        try:
            for child in self._every():
                child.start()
            self._until_ready()
            while not self._stopping:
                self._tick()
        finally:
            self._stop()

    def _prepare_database(self) -> None:
        """Migrate the database, and delete this host's workers, which may have been killed.

        Live ones reappear within seconds. Raises NotReadyError unless waiting may help.
        """
        engine = connect(self.settings.database)
        try:
            migrate(engine)
            fleet.forget(engine, socket.gethostname())
        except NotReadyError as error:
            if not isinstance(error.__cause__, AWAY):
                raise
            # Workers and API keep retrying.
            self.say(f"waiting for the database: {error}")
        finally:
            engine.dispose()

    @property
    def url(self) -> str:
        """The URL of the API."""
        host, port = self.listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{port}"

    def _children(self) -> list[list[Child]]:
        """Return the children in start order; they stop in reverse order."""
        stages = []
        if self.settings.broker is None:
            self.valkey = Valkey.in_folder(self.settings.data / "valkey")
            # It inherits the lock: until it ends, no other Valkey may open its append-only file.
            stages.append([self.valkey.child((self.lock,))])
        environment = self._environment()
        descriptor = self.listener.fileno()
        grace = self.settings.stop_seconds + _WORKER_MARGIN_SECONDS
        stages.append(
            [
                Child(f"worker {number}", _afluente("worker"), grace, environment)
                for number in range(1, self.workers + 1)
            ]
        )
        api = _afluente("api", "--descriptor", str(descriptor))
        # The listener stays open here, so that clients wait while the API restarts.
        stages.append([Child("api", api, _API_GRACE_SECONDS, environment, (descriptor,))])
        return stages

    def _environment(self) -> dict[str, str]:
        host, port = self.listener.getsockname()[:2]
        broker = self.valkey.url if self.valkey else self.settings.broker
        return {
            "AFLUENTE_DATA_DIR": str(self.settings.data),
            "AFLUENTE_BROKER_URL": str(broker),
            "AFLUENTE_HOST": str(host),
            "AFLUENTE_PORT": str(port),
        }

    def _until_ready(self) -> None:
        started = time.monotonic()
        host, port = self.listener.getsockname()[:2]
        missing: str | None = "it has only started"
        while missing and not self._stopping:
            self._tick()
            missing = readiness.missing(_reachable(host), port)
            if missing and time.monotonic() - started > _PATIENCE_SECONDS:
                raise NotReadyError(
                    f"The service was not ready after {_PATIENCE_SECONDS:.0f} s ({missing}); see "
                    "the output of its processes above."
                )
        if not missing:
            self._write_state()
            self._announce(time.monotonic() - started)

    def _announce(self, seconds: float) -> None:
        self.say(
            f"Afluente is ready after {seconds:.1f} s\n"
            f"  API       {self.url}\n"
            f"  API docs  {self.url}/docs\n"
            f"  data      {self.settings.data}\n"
            "  stop      Ctrl-C"
        )

    def _tick(self) -> None:
        time.sleep(_TICK_SECONDS)
        if self._stopping:
            return
        news = [text for child in self._every() if (text := child.watch())]
        reap_orphans(self._every())
        for text in news:
            self.say(text)
        if news and self._state_path.exists():
            self._write_state()

    @property
    def _state_path(self) -> Path:
        return self.settings.data / _STATE_FILE

    def _write_state(self) -> None:
        """Write the service's address for scripts; without secrets, but only for the owner."""
        state = {
            "pid": os.getpid(),
            "url": self.url,
            "broker_url": self.valkey.safe_url if self.valkey else None,
            "children": {child.name: child.pid for child in self._every()},
        }
        temporary = self._state_path.with_suffix(f".{os.getpid()}")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(state, indent=2) + "\n")
        temporary.replace(self._state_path)

    def _stop_soon(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            self._kill()
        self._stopping = True

    def _stop(self) -> None:
        self._stopping = True
        self._state_path.unlink(missing_ok=True)
        self.say("stopping")
        for stage in reversed(self._stages):
            for name in stop(stage):
                self.say(f"{name} did not stop in time and was killed")

    def _kill(self) -> None:
        for child in self._every():
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)

    def _every(self) -> list[Child]:
        return [child for stage in self._stages for child in stage]


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; NotReadyError if that fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise NotReadyError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}; choose another with "
            "--port (0 picks a free one) or --host."
        ) from None


def _afluente(*arguments: str) -> list[str]:
    # -P: do not import a folder `app` or `worker` from the working directory.
    return [sys.executable, "-P", "-m", "cli.main", *arguments]


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
