"""`make bench`: every method against its peer, interleaved, as ratios with median and spread."""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.contract.catalogue import CATALOGUE
from benchmarks.inputs import SHAPES, WEIGHTS, make_inputs
from benchmarks.measure import WITHOUT_BASE, Measurement, run_child, timed
from benchmarks.peers import FUSION_BENCH, MERGEKIT, fusion_bench_python, mergekit_python
from worker.merging.engine.run import default_threads

_HERE = Path(__file__).parent
_BLOCK = 2**22


@dataclass(frozen=True)
class Contest:
    """A method with its parameters (JSON), its peer, and the ratios that it should reach."""

    method: str
    parameters: str = "{}"
    peer: str | None = None
    peer_method: str = ""
    peer_parameters: str = "{}"
    wanted_faster: float | None = None
    wanted_of_floor: float | None = None


_WEIGHT = '{"each": {"weight": 1.0}}'
_TIES = '{"each": {"weight": 1.0, "density": 0.2}}'
_CRUMBS = '{"each": {"weight": 1.0, "density": 0.9, "gamma": 0.01}}'
_HALF = '{"select_topk": 0.5}'

CONTESTS = (
    Contest("soup", "{}", "mergekit", "linear", _WEIGHT, 1.3, 2.0),
    Contest("task_arithmetic", "{}", "mergekit", "task_arithmetic", _WEIGHT, 1.3, 2.0),
    Contest("model_stock", "{}", "mergekit", "model_stock", "{}", 3.0, 2.5),
    Contest("multi_slerp", "{}", "mergekit", "multislerp", _WEIGHT, 3.0, 2.5),
    Contest("karcher", "{}", "mergekit", "karcher", "{}", 3.0, 2.5),
    Contest("ties", "{}", "mergekit", "ties", _TIES, 10.0, 6.0),
    Contest("sce", _HALF, "mergekit", "sce", _HALF, 10.0, 6.0),
    Contest("breadcrumbs", "{}", "mergekit", "breadcrumbs", _CRUMBS, 10.0, 6.0),
    Contest("pcb", wanted_of_floor=6.0),
    Contest("iso_c", "{}", "fusion_bench", "iso_c", "2", 3.0),
    Contest("tsv_m", "{}", "fusion_bench", "tsv_m", "2", 3.0),
    Contest("boosted_tsv_m", "{}", "fusion_bench", "tsv_m", "2", 3.0),
    Contest("iso_cts", "{}", "fusion_bench", "iso_cts", "2", 25.0),
)
_COLUMNS = (
    "method", "ours, s", "floor, s", "ours / floor", "peer", "peer, s", "peer / ours",
    "its functions alone, s and / ours",
    "hash in + out, s", "peak MiB", "peer's", "peer's / ours",
)  # fmt: skip


def main() -> None:
    """Run the contests and print one row each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="*", help="all by default")
    parser.add_argument("--slow-peers", action="store_true", help="also peers that take minutes")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    options = parser.parse_args()
    cache = options.cache.absolute()
    folders = make_inputs(cache / "inputs", SHAPES[options.shape], options.experts)
    _describe(options)
    for contest in CONTESTS:
        chosen = not options.methods or contest.method in options.methods
        if chosen and contest.method in CATALOGUE:
            print(_row(contest, folders, cache, options), flush=True)
    shutil.rmtree(cache / "out", ignore_errors=True)


def _describe(options: argparse.Namespace) -> None:
    import torch

    print(
        f"Whisper-{options.shape}, float32, base and {options.experts} experts; median of "
        f"{options.repeats} interleaved runs (lowest-highest). {_processor()}, "
        f"{default_threads()} cores, torch {torch.__version__}, {MERGEKIT}, {FUSION_BENCH}.\n"
        "`floor` is reading the inputs and writing one output; hashing is told apart.\n"
    )
    print(f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}")


def _row(
    contest: Contest, folders: Sequence[Path], cache: Path, options: argparse.Namespace
) -> str:
    peer = _peer(contest, folders, cache, slow=options.slow_peers)
    ours: list[Measurement] = []
    theirs: list[Measurement] = []
    floors: list[float] = []
    for _ in range(options.repeats):
        floors.append(_floor(contest, folders, cache))
        ours.append(_ours(contest, folders, cache))
        if peer is not None and (len(theirs) < 1 or theirs[0].seconds < 60):
            theirs.append(peer())
    median = statistics.median
    mine, floor = median(m.seconds for m in ours), median(floors)
    hashing = (
        median(m.more["hash_inputs"] for m in ours),
        median(m.more["hash_outputs"] for m in ours),
    )
    peak = median(m.peak_mib for m in ours)
    cells = [contest.method, _spread([m.seconds for m in ours]), f"{floor:.2f}"]
    cells.append(_judged(mine / floor, contest.wanted_of_floor, lower=True))
    if theirs:
        other, other_peak = median(m.seconds for m in theirs), median(m.peak_mib for m in theirs)
        cells += [f"{contest.peer} {contest.peer_method}", _spread([m.seconds for m in theirs])]
        cells.append(_judged(other / mine, contest.wanted_faster, lower=False))
        alone = [m.more["in_memory"] for m in theirs if "in_memory" in m.more]
        cells.append(f"{median(alone):.2f}, {median(alone) / mine:.1f}" if alone else "")
        cells += [f"{hashing[0]:.2f} + {hashing[1]:.2f}", f"{peak:.0f}", f"{other_peak:.0f}"]
        cells.append(f"{other_peak / peak:.1f}")
    else:
        cells += ["", "", "", "", f"{hashing[0]:.2f} + {hashing[1]:.2f}", f"{peak:.0f}", "", ""]
    return f"| {' | '.join(cells)} |"


def _ours(contest: Contest, folders: Sequence[Path], cache: Path) -> Measurement:
    out = str(cache / "out" / "ours")
    arguments = [contest.method, contest.parameters, out, *map(str, folders)]
    return run_child(Path(sys.executable), _HERE / "run_afluente.py", arguments)


def _peer(
    contest: Contest, folders: Sequence[Path], cache: Path, *, slow: bool
) -> Callable[[], Measurement] | None:
    paths = list(map(str, folders))
    if contest.peer == "mergekit":
        python, out = mergekit_python(cache), str(cache / "out" / "mergekit")
        arguments = [contest.peer_method, contest.peer_parameters, out, *paths]
        return lambda: run_child(python, _HERE / "run_mergekit.py", arguments)
    if contest.peer == "fusion_bench" and (slow or contest.method != "iso_cts"):
        python = fusion_bench_python(cache)
        out = str(cache / "out" / "fusion_bench")
        arguments = [contest.peer_method, contest.peer_parameters, out, *paths]
        return lambda: run_child(python, _HERE / "run_fusionbench.py", arguments)
    return None


def _floor(contest: Contest, folders: Sequence[Path], cache: Path) -> float:
    """Return the seconds for reading the inputs and writing one output, in blocks."""
    read = folders[1:] if contest.method in WITHOUT_BASE else folders
    target = cache / "out" / "floor"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)

    def work() -> None:
        buffer = bytearray(_BLOCK)
        for number, folder in enumerate(read):
            with (folder / WEIGHTS).open("rb", buffering=0) as source, target.open("ab") as sink:
                while count := source.readinto(buffer):
                    if number == 0:
                        sink.write(memoryview(buffer)[:count])

    return timed(work)


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def _judged(ratio: float, wanted: float | None, *, lower: bool) -> str:
    if wanted is None:
        return f"{ratio:.1f}"
    reached = ratio <= wanted if lower else ratio >= wanted
    return f"{ratio:.1f} ({'' if reached else 'not '}{'≤' if lower else '≥'} {wanted:g})"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
