"""One measured run in a fresh process: seconds inside the merge, and the process's peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARK = "MEASURED "
# Merged without a base on both sides, by either's name. mergekit's multislerp would take one, but
# raises on every tensor that the experts left as it was, which Whisper always has.
WITHOUT_BASE = frozenset({"soup", "linear", "karcher", "multi_slerp", "multislerp"})


@dataclass(frozen=True)
class Measurement:
    """Seconds inside the merge, seconds of the whole process, peak MiB, and what else was told."""

    seconds: float
    process_seconds: float
    peak_mib: float
    more: dict[str, Any]


def report(seconds: float, **more: Any) -> None:
    """Tell the parent what this process measured (called in the child)."""
    # Not getrusage's: that goes back to before exec, when the process was its parent's twin.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(_MARK + json.dumps({"seconds": seconds, "peak_mib": peak, **more}), flush=True)


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` took."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def run_child(python: Path, script: Path, arguments: list[str], **environment: str) -> Measurement:
    """Run a script with an interpreter in a fresh process and return what it reported."""
    root = str(Path(__file__).parents[1])
    begun = time.perf_counter()
    done = subprocess.run(
        [str(python), str(script), *arguments],
        env={**_unpinned(), "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    process_seconds = time.perf_counter() - begun
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not lines:
        sys.exit(f"{script.name} {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")
    found = json.loads(lines[-1].removeprefix(_MARK))
    return Measurement(found.pop("seconds"), process_seconds, found.pop("peak_mib"), found)


def _unpinned() -> dict[str, str]:
    """Return the environment without what would keep a BLAS from the instructions that it finds."""
    pins = ("OPENBLAS_CORETYPE", "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS")
    return {name: value for name, value in os.environ.items() if name not in pins}
