"""The embedded stack as users run it: `afluente up` in its own process, over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil

START_SECONDS = 60.0


def afluente(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the CLI to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        env=_environment(environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _environment(more: dict[str, str]) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("AFLUENTE_")}
    return {**inherited, "OMP_NUM_THREADS": "1", **more}


class Stack:
    """An `afluente up`, a client of its API, and its processes."""

    def __init__(
        self, data: Path, workers: int = 1, *, cwd: Path | None = None, **environment: str
    ) -> None:
        self.data = data
        command = [sys.executable, "-P", "-m", "cli.main", "up", "--port", "0"]
        command += ["--data-dir", str(data)]
        self.log = data.with_suffix(".log")
        with self.log.open("a") as log:
            self.up = subprocess.Popen(
                [*command, "--workers", str(workers)],
                env=_environment(environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait(self._is_ready, START_SECONDS)
        except BaseException:
            self.up.kill()
            self.up.wait()
            raise
        self.url = self.state["url"]
        self.http = httpx2.Client(base_url=self.url, timeout=30)

    @property
    def state(self) -> dict[str, Any]:
        """What up.json says."""
        state: dict[str, Any] = json.loads((self.data / "up.json").read_text())
        return state

    def descendants(self) -> list[psutil.Process]:
        """Every process that `afluente up` started, and what those started."""
        return psutil.Process(self.up.pid).children(recursive=True)

    def kill(self, name: str) -> None:
        """`kill -9` one of the children that up.json names."""
        os.kill(self.state["children"][name], signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to `afluente up` and return its exit status."""
        self.http.close()
        self.up.send_signal(number)
        return self.up.wait(60)

    def post(self, recipe: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post("/merges", json=recipe)
        assert answer.status_code == 202, answer.text
        merge: dict[str, Any] = answer.json()
        return merge

    def get(self, path: str) -> Any:
        """Get a document; wait while the API restarts."""
        deadline = time.monotonic() + 20
        while True:
            try:
                answer = self.http.get(path)
            except httpx2.TransportError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)
                continue
            assert answer.status_code == 200, answer.text
            return answer.json()

    def wait_for(
        self, merge_id: str, done: Callable[[dict[str, Any]], bool], seconds: float = 60.0
    ) -> dict[str, Any]:
        """Return the merge as soon as `done` says so."""
        merge: dict[str, Any] = {}

        def look() -> bool:
            merge.update(self.get(f"/merges/{merge_id}"))
            return done(merge)

        self._wait(look, seconds)
        return merge

    def finish(self, merge_id: str, seconds: float = 60.0) -> dict[str, Any]:
        """Return the merge when it has succeeded."""
        ends = {"succeeded", "failed", "cancelled"}
        merge = self.wait_for(merge_id, lambda merge: merge["status"] in ends, seconds)
        assert merge["status"] == "succeeded", merge
        return merge

    def _is_ready(self) -> bool:
        try:
            return bool(self.state["pid"] == self.up.pid)
        except FileNotFoundError:
            return False

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert self.up.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)


@contextmanager
def running(
    data: Path, workers: int = 1, *, cwd: Path | None = None, **environment: str
) -> Iterator[Stack]:
    """Run a stack, and leave nothing of it behind."""
    stack = Stack(data, workers, cwd=cwd, **environment)
    try:
        yield stack
    finally:
        stack.http.close()
        if stack.up.poll() is None:
            stack.stop()


def digests(merge: dict[str, Any]) -> dict[str, str]:
    """Return the sha256 of every artifact."""
    return {file["name"]: file["sha256"] for file in merge["artifacts"]}


def heavy_recipe(heavy: Path, method: str = "iso_cts") -> dict[str, Any]:
    """Return the recipe of a merge that can be killed half-way, if it is by this method."""
    return {
        "base": (heavy / "base").as_uri(),
        "checkpoints": [(heavy / f"expert-{seed}").as_uri() for seed in (1, 2)],
        "method": method,
    }
