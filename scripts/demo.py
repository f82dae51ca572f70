"""`make demo`: merges the sample experts over HTTP and prints a table of word error rates."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.contract.errors import AfluenteError, NotReadyError
from app.reports.rendering import render_table
from cli.client import Client
from cli.following import follow
from cli.progress import ProgressReport
from cli.stack.lock import lock

_SAMPLES = Path(__file__).resolve().parents[1] / "samples"
# Defaults, except for task arithmetic, for which λ = 0.5 is a common first choice.
_METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"scaling_coefficient": 0.5},
    "tsv_m": {},
    "boosted_tsv_m": {},
}
_START_SECONDS = 90.0


def main() -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the service running")
    parser.add_argument(
        "--folder", type=Path, default=Path("afluente-data/demo"), help="emptied first"
    )
    options = parser.parse_args()
    try:
        _demonstrate(options.folder.absolute(), keep=options.keep)
    except AfluenteError as error:
        print(f"demo: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _demonstrate(folder: Path, *, keep: bool) -> None:
    began = time.monotonic()
    _empty(folder)
    with _service(folder, keep=keep) as url, Client(url) as client:
        print(f"The service is up at {url} after {time.monotonic() - began:.1f} s.\n")
        posted = {method: _post(client, method) for method in _METHODS}
        merges = {method: _finish(client, method, merge) for method, merge in posted.items()}
        results = [client.get(f"/merges/{merge['id']}/wer") for merge in merges.values()]
        print("\nWord error rates in percent (in averages, each domain counts once)\n")
        print(render_table(*results, labels=[_label(method) for method in merges]))
        for method, merge in merges.items():
            target = _download(client, merge, folder / "merged" / method)
            print(f"{method:<16} {target}  sha256 {_weights_digest(merge)}")
    print(f"\nTotal time: {time.monotonic() - began:.0f} s.")
    if keep:
        print(f"Still running: {url}, API docs at {url}/docs; `kill {_pid(folder)}` stops it.")
    else:
        print("The service has stopped. `make up` starts it again, with API docs at /docs.")


def _recipe(method: str) -> dict[str, Any]:
    """Return the body of `POST /merges` with all sample experts and datasets."""
    experts = sorted(
        path
        for path in (_SAMPLES / "checkpoints").iterdir()
        if path.is_dir() and path.name != "base"
    )
    names = {path.name for path in experts}
    manifests = sorted((_SAMPLES / "speech").glob("*/manifest.jsonl"))
    datasets = [
        {
            "name": path.parent.name,
            "uri": path.as_uri(),
            "group": _group(path.parent.name, names),
        }
        for path in manifests
    ]
    return {
        "name": f"demo-{method}",
        "base": (_SAMPLES / "checkpoints" / "base").as_uri(),
        "checkpoints": [path.as_uri() for path in experts],
        "method": method,
        "parameters": _METHODS[method],
        "evaluation": {
            "datasets": sorted(datasets, key=lambda item: (item["group"], item["name"])),
            "language": "pt",
            "num_beams": 1,
        },
    }


def _group(dataset: str, experts: set[str]) -> str:
    """Return a dataset's group; the base's own domain is neither in nor out of domain."""
    if dataset in experts:
        return "in_domain"
    return "other" if dataset == "clean" else "out_of_domain"


def _post(client: Client, method: str) -> dict[str, Any]:
    merge: dict[str, Any] = client.post("/merges", _recipe(method), idempotency_key=uuid4().hex)
    print(f"POST /merges  {method:<16} -> {merge['id']} {merge['status']}")
    return merge


def _finish(client: Client, method: str, merge: Mapping[str, Any]) -> dict[str, Any]:
    with ProgressReport(method) as report:
        final = follow(client, merge, report)
    if final["status"] != "succeeded" or final["evaluation"]["status"] != "succeeded":
        reason = (final["error"] or {}).get("message", "")
        raise NotReadyError(
            f"{final['id']} is {final['status']}, its evaluation "
            f"{final['evaluation']['status']}. {reason}"
        )
    return final


def _download(client: Client, merge: Mapping[str, Any], target: Path) -> Path:
    content = client.get_bytes(f"/merges/{merge['id']}/artifacts.tar")
    target.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(target, filter="data")
    return target


def _label(method: str) -> str:
    coefficient = _METHODS[method].get("scaling_coefficient")
    return method if coefficient is None else f"{method} (λ={coefficient})"


def _weights_digest(merge: Mapping[str, Any]) -> str:
    files = {file["name"]: file["sha256"] for file in merge["artifacts"]}
    return str(files["model.safetensors"])[:12]


def _empty(folder: Path) -> None:
    """Delete an earlier demo, unless it is still running."""
    folder.mkdir(parents=True, exist_ok=True)
    lock(folder)
    shutil.rmtree(folder)
    folder.mkdir()


@contextmanager
def _service(folder: Path, *, keep: bool) -> Iterator[str]:
    """Run `afluente up` on the folder and yield its URL; stop it at the end unless kept."""
    log = folder / "up.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "cli.main",
                "up",
                "--port",
                "0",
                "--data-dir",
                str(folder),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finished = False
    try:
        yield _wait_for_url(process, folder, log)
        finished = True
    finally:
        if not (keep and finished):
            process.send_signal(signal.SIGTERM)
            process.wait()


def _wait_for_url(process: subprocess.Popen[bytes], folder: Path, log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return str(json.loads((folder / "up.json").read_text())["url"])
        except FileNotFoundError:
            time.sleep(0.1)
    ending = "\n".join(log.read_text().splitlines()[-15:])
    raise NotReadyError(f"The service did not start; the end of {log}:\n{ending}")


def _pid(folder: Path) -> int:
    return int(json.loads((folder / "up.json").read_text())["pid"])


if __name__ == "__main__":
    sys.exit(main())
