"""The whole process, from the command to the finished artifact: ours beside mergekit-pytorch."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import timed
from benchmarks.peers import mergekit_python

_SAMPLES = Path(__file__).parents[1] / "samples" / "checkpoints"
_EXPERTS = ("telephone", "parliament", "fast")
# The same merge by either's name; our methods, theirs, and theirs' parameters.
_METHODS = {
    "soup": ("linear", {"weight": 1.0}, {}),
    "task_arithmetic": ("task_arithmetic", {"weight": 1.0}, {}),
    "ties": ("ties", {"weight": 1.0, "density": 0.2}, {"normalize": True}),
}
_WANTED = 2.0


def main() -> None:
    """Merge the sample checkpoints by turns, and print a row a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    options = parser.parse_args()
    out = options.cache.absolute() / "out" / "startup"
    mergekit = mergekit_python(options.cache.absolute()).with_name("mergekit-pytorch")
    print("| method | afluente merge, s | mergekit-pytorch, s | theirs / ours |")
    print("| --- | --- | --- | --- |")
    for method in _METHODS:
        ours, theirs = [], []
        for _ in range(options.repeats):
            ours.append(_seconds(_ours(method, out), out))
            theirs.append(_seconds(_theirs(mergekit, method, out), out))
        ratio = statistics.median(theirs) / statistics.median(ours)
        wanted = f"{'' if ratio >= _WANTED else 'not '}≥ {_WANTED:g}"
        print(f"| {method} | {_spread(ours)} | {_spread(theirs)} | {ratio:.1f} ({wanted}) |")
    shutil.rmtree(out, ignore_errors=True)


def _ours(method: str, out: Path) -> list[str]:
    document = {"method": method, "checkpoints": [str(_SAMPLES / name) for name in _EXPERTS]}
    if method != "soup":
        document["base"] = str(_SAMPLES / "base")
    recipe = _write(out / "ours.yaml", document)
    afluente = str(Path(sys.executable).with_name("afluente"))
    return [afluente, "merge", recipe, "--output", str(out / "ours")]


def _theirs(mergekit: Path, method: str, out: Path) -> list[str]:
    theirs, each, parameters = _METHODS[method]
    models = [
        {"model": str(_SAMPLES / expert / "model.safetensors"), "parameters": each}
        for expert in _EXPERTS
    ]
    config = {"merge_method": theirs, "models": models, "parameters": parameters}
    if method != "soup":
        config["base_model"] = str(_SAMPLES / "base" / "model.safetensors")
    recipe = _write(out / "theirs.yaml", {**config, "dtype": "float32"})
    return [str(mergekit), recipe, str(out / "theirs")]


def _write(path: Path, document: Mapping[str, object]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return str(path)


def _seconds(command: Sequence[str], out: Path) -> float:
    for folder in ("ours", "theirs"):
        shutil.rmtree(out / folder, ignore_errors=True)
    return timed(lambda: subprocess.run(command, check=True, capture_output=True))


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


if __name__ == "__main__":
    main()
