"""What a ten-point λ sweep costs beside one merge, with and without the writing of its outputs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.inputs import SHAPES, make_inputs
from benchmarks.measure import Measurement, run_child

_HERE = Path(__file__).parent
_METHODS = ("task_arithmetic", "ties", "boosted_tsv_m")
_COLUMNS = (
    "method", "one, s", "ten, s", "one, not written", "ten, not written", "ten / one",
    "ten / one, not written", "the same, CPU time", "peak MiB, one and ten",
)  # fmt: skip
_ONE, _TEN = [0.3], [number / 10 for number in range(1, 11)]


def main() -> None:
    """Take turns at one merge and ten, written and not; print a row a method, of the quickest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=list(_METHODS))
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    options = parser.parse_args()
    cache = options.cache.absolute()
    folders = make_inputs(cache / "inputs", SHAPES[options.shape], options.experts)
    print(f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}")
    for method in options.methods:
        print(_row(method, folders, cache / "out" / "sweep", options.repeats), flush=True)


def _row(method: str, folders: Sequence[Path], out: Path, repeats: int) -> str:
    kinds = [(values, discard) for discard in (False, True) for values in (_ONE, _TEN)]
    runs: list[list[Measurement]] = [[] for _ in kinds]
    for _ in range(repeats):
        for found, (values, discard) in zip(runs, kinds, strict=True):
            given = json.dumps({"values": values, "discard": discard})
            arguments = [method, given, str(out), *map(str, folders)]
            found.append(run_child(Path(sys.executable), _HERE / "run_sweep.py", arguments))
    one, ten, bare_one, bare_ten = (min(run.seconds for run in found) for found in runs)
    cpu = [min(run.more["cpu_seconds"] for run in found) for found in runs]
    peaks = [max(run.peak_mib for run in found) for found in runs]
    cells = [method, *(f"{seconds:.2f}" for seconds in (one, ten, bare_one, bare_ten))]
    cells += [f"{ten / one:.2f}", f"{bare_ten / bare_one:.2f} (wanted: < 2)"]
    cells += [f"{cpu[3] / cpu[2]:.2f}", f"{peaks[0]:.0f}, {peaks[1]:.0f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
