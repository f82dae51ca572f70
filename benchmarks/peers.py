"""The peers' own environments, made once under .cache/bench: mergekit and FusionBench from PyPI."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

MERGEKIT, FUSION_BENCH = "mergekit==0.1.5", "fusion-bench==0.2.33"
_TORCH = "torch==2.13.0"


def mergekit_python(cache: Path) -> Path:
    """Return the interpreter of an environment with mergekit."""
    return _environment(cache / "mergekit", [[_TORCH], [_TORCH, MERGEKIT]])


def fusion_bench_python(cache: Path) -> Path:
    """Return the interpreter of an environment with FusionBench's own files.

    Without its dependencies: the two files that hold the algorithms need torch alone.
    """
    steps = [[_TORCH, "safetensors", "numpy"], ["--no-deps", FUSION_BENCH]]
    return _environment(cache / "fusion-bench", steps)


def _environment(folder: Path, steps: list[list[str]]) -> Path:
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if not done.exists():
        print(f"making {folder} (once)", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        for packages in steps:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        done.touch()
    return python
