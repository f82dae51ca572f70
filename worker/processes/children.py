"""Supervised child processes: started, watched, restarted and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("launch.py")
_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 5.0
# After living this long, a child's next death counts as its first.
_HEALTHY_SECONDS = 30.0


@dataclass
class Child:
    """One process of the group: its command, and the time it may take to stop."""

    name: str
    command: Sequence[str]
    grace_seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: Sequence[int] = ()
    input: Path = Path(os.devnull)
    output: int | None = None
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    _started_at: float = 0.0
    _start_at: float = 0.0

    @property
    def pid(self) -> int | None:
        """The process's id, or None while it is down."""
        return self.process.pid if self.process else None

    def start(self) -> None:
        """Start the process in its own session; it dies with this process."""
        command = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *self.command]
        # Its own session, so that only the parent gets the terminal's Ctrl-C.
        with self.input.open("rb") as stdin:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                stdin=stdin,
                stdout=self.output,
                pass_fds=tuple(self.inherited),
                start_new_session=True,
            )
        self._started_at = time.monotonic()

    def watch(self) -> str | None:
        """Restart the process if it is down and its delay is over; return a message on a change."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._start_at:
                self.start()
                return f"{self.name} was restarted"
            return None
        code = self.process.poll()
        if code is None:
            return None
        self._reap()
        self.deaths = 1 if now - self._started_at > _HEALTHY_SECONDS else self.deaths + 1
        delay = min(_FIRST_DELAY_SECONDS * 2 ** (self.deaths - 1), _LONGEST_DELAY_SECONDS)
        self._start_at = now + delay
        return f"{self.name} {_ending(code)}; restarting it in {delay:.1f} s"

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the process."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline: float) -> bool:
        """Wait until the process ends; kill it at `deadline` (monotonic). True if it ended."""
        if self.process is None:
            return True
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        self._reap()
        return ended

    def _reap(self) -> None:
        """Kill the rest of the process's session, and collect the process."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


def reap_orphans(children: Sequence[Child]) -> None:
    """Collect ended processes that were reparented to this one, as happens to a container's init.

    `Child.watch` collects the children themselves.
    """
    own = {child.pid for child in children}
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in own:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


def stop(children: Sequence[Child]) -> list[str]:
    """Stop these children at the same time; return the names of those that had to be killed."""
    now = time.monotonic()
    for child in children:
        child.ask_to_stop()
    return [child.name for child in children if not child.wait(now + child.grace_seconds)]


def _ending(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"
