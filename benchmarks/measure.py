"""Measures programs in fresh processes; run as a script, it is such a process, and merges once.

The script imports nothing else of benchmarks/, and of the project only what every commit has:
compare.py runs it on the code of other commits.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event, Thread
from typing import Any

ROOT = Path(__file__).parents[1]
# Merged without a base.
WITHOUT_BASE = frozenset({"soup", "karcher", "multi_slerp"})
# They would keep a BLAS from the instructions that it finds.
_PINS = ("OPENBLAS_CORETYPE", "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS")
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Process:
    """What a process took, and the JSON that it printed last.

    `ready` has pairs: a time of the clock (time.monotonic), how many threads had something to
    compute then. Threads that wait for a core count, so that other programs do not lower it.
    """

    begun: float
    seconds: float
    cpu_seconds: float
    peak_mib: float
    ready: Sequence[tuple[float, int]]
    printed: dict[str, Any]


@dataclass(frozen=True)
class Merge:
    """One merge. Times are in seconds.

    `whole` and `whole_cpu` are those of the call, files to file, which begins with hashing the
    inputs. `merging` is from when the first tensor is taken up until the last is written; `before`
    and `after` are the rest of `whole`. `first_tensor` and `first_tensor_cpu` are from the start of
    the process until the first tensor is finished. While merging, `cores` is the CPU time of a
    second, and `ready` the mean number of threads with something to compute.
    """

    whole: float
    whole_cpu: float
    merging: float
    merging_cpu: float
    before: float
    after: float
    first_tensor: float
    first_tensor_cpu: float
    cores: float
    ready: float
    peak_mib: float


def run_process(command: Sequence[str | Path], root: Path = ROOT, **environment: str) -> Process:
    """Run a command that imports this project's packages from `root`; exit if it fails."""
    kept = {name: value for name, value in os.environ.items() if name not in _PINS}
    kept |= {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", **environment}
    ready: list[tuple[float, int]] = []
    ended = Event()
    with TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        begun = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), env=kept, stdout=stdout, stderr=stderr)
        watcher = Thread(target=_watch, args=(process.pid, ready, ended))
        watcher.start()
        # A process begins with the peak memory of its parent, so the parent must not import torch.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        watcher.join()
        stdout.seek(0)
        stderr.seek(0)
        lines = stdout.read().splitlines()
        if process.returncode:
            said = "\n".join([*lines, stderr.read()])
            sys.exit(f"{' '.join(map(str, command))} failed, with the code of {root}:\n{said}")
    printed = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Process(begun, seconds, cpu_seconds, usage.ru_maxrss / 1024, ready, printed)


def recipe_of(
    method: str, folders: Sequence[Path], parameters: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the recipe that merges the experts of [base, expert, ...] by a method."""
    base, *experts = map(str, folders)
    document = {"method": method, "checkpoints": experts, "parameters": dict(parameters or {})}
    return document if method in WITHOUT_BASE else {**document, "base": base}


def measure_merge(
    recipe: Mapping[str, Any],
    output: Path,
    root: Path = ROOT,
    swept: Mapping[str, Sequence[float]] | None = None,
    **environment: str,
) -> Merge:
    """Merge by `merge_recipe`, or by `sweep_recipe` where a parameter has several values."""
    script = [sys.executable, "-P", __file__, _written(recipe, output), output, json.dumps(swept)]
    process = _run_merge(script, output, root, environment)
    called, begun, first, ended, returned = (
        process.printed["wall"][name] for name in ("called", "begun", "first", "ended", "returned")
    )
    cpu = process.printed["cpu"]
    merging, merging_cpu = ended - begun, cpu["ended"] - cpu["begun"]
    ready = [count for moment, count in process.ready if begun <= moment <= ended]
    return Merge(
        whole=returned - called,
        whole_cpu=cpu["returned"] - cpu["called"],
        merging=merging,
        merging_cpu=merging_cpu,
        before=begun - called,
        after=returned - ended,
        first_tensor=first - process.begun,
        first_tensor_cpu=cpu["first"],
        cores=merging_cpu / merging,
        ready=statistics.fmean(ready or [0]),
        peak_mib=process.peak_mib,
    )


def measure_command(
    recipe: Mapping[str, Any], output: Path, root: Path = ROOT, **environment: str
) -> Process:
    """Merge by the command `afluente merge`."""
    afluente = Path(sys.executable).with_name("afluente")
    command = [afluente, "merge", _written(recipe, output), "--output", output]
    return _run_merge(command, output, root, environment)


def names(text: str) -> list[str]:
    """Return the names of a comma-separated list."""
    return text.split(",")


def spread(values: Sequence[float]) -> str:
    """Return the least, and the most in parentheses."""
    return f"{min(values):.2f} ({max(values):.2f})"


def _written(recipe: Mapping[str, Any], output: Path) -> Path:
    path = output.with_name(f"{output.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe))
    return path


def _run_merge(
    command: Sequence[str | Path], output: Path, root: Path, environment: Mapping[str, str]
) -> Process:
    shutil.rmtree(output, ignore_errors=True)
    settings = {"AFLUENTE_DATA_DIR": str(output.parent / "data"), "AFLUENTE_DEVICE": "cpu"}
    process = run_process(command, root, **{**settings, **environment})
    # At once, so that it is not written to the disk during the next measurement.
    shutil.rmtree(output)
    return process


def _watch(pid: int, ready: list[tuple[float, int]], ended: Event) -> None:
    while not ended.wait(_SAMPLE_SECONDS):
        states = []
        for task in Path(f"/proc/{pid}/task").glob("*/stat"):
            with suppress(OSError):  # the thread has ended
                states.append(task.read_text().rpartition(") ")[2][0])
        ready.append((time.monotonic(), states.count("R")))


def _merge_once() -> None:
    recipe, output, swept = sys.argv[1:]
    from app.contract.settings import Settings
    from worker.merging import local, sweep

    if not Path(local.__file__).is_relative_to(os.environ["PYTHONPATH"]):
        sys.exit(f"{local.__file__} was imported, which is of another tree.")
    document, values = json.loads(Path(recipe).read_text()), json.loads(swept)
    wall: dict[str, float] = {}
    cpu: dict[str, float] = {}

    def note(moment: str) -> None:
        wall[moment], cpu[moment] = time.monotonic(), time.process_time()

    def progress(done: int, total: int, unit: str) -> None:
        if unit == "tensors":
            if "begun" not in wall:
                note("begun")
            if done and "first" not in wall:
                note("first")
            note("ended")

    note("called")
    if values:
        sweep.sweep_recipe(document, values, Path(output), Settings(), progress)
    else:
        local.merge_recipe(document, Path(output), Settings(), progress)
    note("returned")
    print(json.dumps({"wall": wall, "cpu": cpu}))


if __name__ == "__main__":
    _merge_once()
