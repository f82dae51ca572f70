"""`make demo`: finds the best merge of the sample experts over HTTP."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from app.contract.errors import AfluenteError, ConflictError, NotReadyError
from app.contract.settings import Settings
from app.reports.studies.terminal import render_study
from cli.client import Client
from cli.recipes import read_recipe, with_absolute_paths
from cli.stack.lock import lock
from cli.trials import TrialReport

_ROOT = Path(__file__).resolve().parents[1]
_START_SECONDS = 90.0


def main() -> int:
    """Run the demo on the service of the data folder; return the exit status."""
    try:
        _demonstrate(Settings().data)
    except AfluenteError as error:
        print(f"demo: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _demonstrate(data: Path) -> None:
    began = time.monotonic()
    with _service(data) as url, Client(url) as client:
        print(f"The service is up at {url} after {time.monotonic() - began:.1f} s.\n")
        recipe = with_absolute_paths(read_recipe(_ROOT / "samples" / "study.yaml"))
        study = client.post("/studies", recipe, idempotency_key=uuid4().hex)
        print(f"POST /studies  samples/study.yaml -> {study['id']}")
        with TrialReport(lambda: client.get(f"/studies/{study['id']}/trials")["data"]) as report:
            for kind, event in client.events(f"/studies/{study['id']}/events"):
                report.event(kind, event)
        study = client.get(f"/studies/{study['id']}")
        if study["status"] != "succeeded":
            reason = (study["error"] or {}).get("message", "")
            raise NotReadyError(f"{study['id']} is {study['status']}. {reason}")
        print(f"\n{render_study(client.get(study['links']['table']))}")
        shipped = study["outcome"]["shipped"]
        if shipped is not None:
            target = data / "shipped" / shipped
            _download(client, shipped, target)
            print(f"The merge to ship: {target}")
    print(f"\nTotal time: {time.monotonic() - began:.0f} s.")
    print(f"The study's page: `make up`, then http://127.0.0.1:8000/studies/{study['id']}")


def _download(client: Client, merge_id: str, target: Path) -> None:
    content = client.get_bytes(f"/merges/{merge_id}/artifacts.tar")
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(target, filter="data")


@contextmanager
def _service(data: Path) -> Iterator[str]:
    """Yield the URL of the folder's service; one that was not running is stopped at the end."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (url := _running(data)) is not None:
        yield url
        return
    log = data / "demo.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli.main", "up", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield _wait_for_url(process, data, log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _running(data: Path) -> str | None:
    """Return the URL of the service that runs on the folder, if one does."""
    try:
        os.close(lock(data))
    except ConflictError:
        return str(json.loads((data / "up.json").read_text())["url"])
    return None


def _wait_for_url(process: subprocess.Popen[bytes], data: Path, log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            state = json.loads((data / "up.json").read_text())
        except FileNotFoundError:
            state = {}
        if state.get("pid") == process.pid:
            return str(state["url"])
        time.sleep(0.1)
    ending = "\n".join(log.read_text().splitlines()[-15:])
    raise NotReadyError(f"The service did not start; the end of {log}:\n{ending}")


if __name__ == "__main__":
    sys.exit(main())
