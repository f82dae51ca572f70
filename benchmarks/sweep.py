"""What a ten-point λ sweep costs beside one merge."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.inputs import SHAPES, make_inputs
from benchmarks.measure import Merge, measure_merge, names, recipe_of

_METHODS = ("task_arithmetic", "ties", "boosted_tsv_m")
_COLUMNS = ("method", "one, s", "ten, s", "ten / one", "the same, CPU time", "peak MiB")
_ONE, _TEN = [0.3], [number / 10 for number in range(1, 11)]


def main() -> None:
    """Take turns at one merge and ten; print a row a method, of the quickest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", type=names, default=_METHODS, help=",".join(_METHODS))
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    options = parser.parse_args()
    cache = options.cache.absolute()
    folders = make_inputs(cache / "inputs", SHAPES[options.shape], options.experts)
    print(f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}")
    for method in options.methods:
        recipe = recipe_of(method, folders)
        runs: tuple[list[Merge], list[Merge]] = ([], [])
        for _ in range(options.repeats):
            for found, values in zip(runs, (_ONE, _TEN), strict=True):
                swept = {"scaling_coefficient": values}
                found.append(measure_merge(recipe, cache / "out" / "sweep", swept=swept))
        print(_row(method, *runs), flush=True)


def _row(method: str, ones: list[Merge], tens: list[Merge]) -> str:
    one, ten = (min(merge.merging for merge in runs) for runs in (ones, tens))
    one_cpu, ten_cpu = (min(merge.merging_cpu for merge in runs) for runs in (ones, tens))
    peaks = [max(merge.peak_mib for merge in runs) for runs in (ones, tens)]
    return (
        f"| {method} | {one:.2f} | {ten:.2f} | {ten / one:.2f} | {ten_cpu / one_cpu:.2f} | "
        f"{peaks[0]:.0f}, {peaks[1]:.0f} |"
    )


if __name__ == "__main__":
    main()
