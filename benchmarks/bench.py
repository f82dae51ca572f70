"""Every method against its peer, by turns, as ratios of the quickest runs (`make bench`)."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from app.contract.catalogue import CATALOGUE
from benchmarks import peers
from benchmarks.inputs import SHAPES, WEIGHTS, copy_samples, make_inputs
from benchmarks.measure import (
    WITHOUT_BASE,
    Process,
    measure_command,
    measure_merge,
    names,
    recipe_of,
    run_process,
    spread,
)

_BLOCK = 2**22
# A peer that took longer is not run again.
_LONG_SECONDS = 60


@dataclass(frozen=True)
class Contest:
    """A method, its peer, either's parameters (JSON), and the ratios that it should reach."""

    method: str
    peer: str | None = None
    peer_method: str = ""
    peer_parameters: str = "{}"
    wanted_faster: float | None = None
    wanted_of_floor: float | None = None
    parameters: str = "{}"
    slow_peer: bool = False
    """The peer takes minutes, and is run only where the method is named."""


_WEIGHT = '{"each": {"weight": 1.0}}'
_TIES = '{"each": {"weight": 1.0, "density": 0.2}}'
_CRUMBS = '{"each": {"weight": 1.0, "density": 0.9, "gamma": 0.01}}'
_HALF = '{"select_topk": 0.5}'

CONTESTS = (
    Contest("soup", "mergekit", "linear", _WEIGHT, 1.3, 2.0),
    Contest("task_arithmetic", "mergekit", "task_arithmetic", _WEIGHT, 1.3, 2.0),
    Contest("model_stock", "mergekit", "model_stock", "{}", 3.0, 2.5),
    Contest("multi_slerp", "mergekit", "multislerp", _WEIGHT, 3.0, 2.5),
    Contest("karcher", "mergekit", "karcher", "{}", 3.0, 2.5),
    Contest("ties", "mergekit", "ties", _TIES, 10.0, 6.0),
    Contest("sce", "mergekit", "sce", _HALF, 10.0, 7.0, parameters=_HALF),
    Contest("breadcrumbs", "mergekit", "breadcrumbs", _CRUMBS, 10.0, 6.0),
    Contest("pcb", wanted_of_floor=7.0),
    Contest("iso_c", "fusion_bench", "iso_c", wanted_faster=2.7),
    Contest("tsv_m", "fusion_bench", "tsv_m", wanted_faster=3.0),
    Contest("boosted_tsv_m", "fusion_bench", "tsv_m", wanted_faster=3.0),
    Contest("iso_cts", "fusion_bench", "iso_cts", wanted_faster=20.0, slow_peer=True),
)
_COLUMNS = (
    "method", "ours, s", "floor, s", "ours / floor", "peer", "peer, s", "peer / ours",
    "its functions alone, s and / ours",
    "before + after, s", "peak MiB", "peer's", "peer's / ours",
)  # fmt: skip
# Those whose commands are compared, and how many times as fast ours should be.
_COMMANDS, _WANTED_OF_COMMANDS = ("soup", "task_arithmetic", "ties"), 2.0


def main() -> None:
    """Print a row a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", type=names, help="iso_c,iso_cts; by default all")
    parser.add_argument(
        "--commands",
        action="store_true",
        help="the commands afluente merge and mergekit-pytorch, with the sample checkpoints",
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    options = parser.parse_args()
    cache = options.cache.absolute()
    if unknown := set(options.methods or ()) - {contest.method for contest in CONTESTS}:
        parser.error(f"--methods: there is no contest of {', '.join(unknown)}")
    chosen = options.methods or (_COMMANDS if options.commands else CATALOGUE)
    contests = [contest for contest in CONTESTS if contest.method in chosen]
    if options.commands:
        _print_commands(contests, cache, options.repeats)
    else:
        _print_merges(contests, cache, options)
    shutil.rmtree(cache / "out" / "bench", ignore_errors=True)


def _print_merges(contests: Sequence[Contest], cache: Path, options: argparse.Namespace) -> None:
    folders = make_inputs(cache / "inputs", SHAPES[options.shape], options.experts)
    print(
        f"Whisper-{options.shape}, {SHAPES[options.shape].dtype}, base and {options.experts} "
        f"experts; the least of {options.repeats} runs (the most). {_processor()}, "
        f"{len(os.sched_getaffinity(0))} cores, torch {version('torch')}, {peers.MERGEKIT}, "
        f"{peers.FUSION_BENCH}.\n"
        "`floor` is reading the inputs and writing one output; hashing is told apart.\n"
    )
    print(f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}")
    for contest in contests:
        peer = None
        if contest.peer and (options.methods or not contest.slow_peer):
            peer = _peer(contest, folders, cache)
        print(_row(contest, folders, cache, peer, options.repeats), flush=True)


def _row(
    contest: Contest,
    folders: Sequence[Path],
    cache: Path,
    peer: Callable[[], Process] | None,
    repeats: int,
) -> str:
    recipe = recipe_of(contest.method, folders, json.loads(contest.parameters))
    out = cache / "out" / "bench" / "ours"
    # Once uncounted: transformers has then looked at the base, and the inputs' digests are known.
    measure_merge(recipe, out)
    ours, theirs, floors = [], [], []
    for _ in range(repeats):
        floors.append(_floor(contest, folders, cache / "out" / "bench" / "floor"))
        ours.append(measure_merge(recipe, out))
        if peer is not None and (not theirs or theirs[0].printed["seconds"] < _LONG_SECONDS):
            theirs.append(peer())
    seconds, peak = [merge.merging for merge in ours], min(merge.peak_mib for merge in ours)
    mine, floor = min(seconds), min(floors)
    around = f"{min(m.before for m in ours):.2f} + {min(m.after for m in ours):.2f}"
    cells = [contest.method, spread(seconds), f"{floor:.2f}"]
    cells.append(_judged(mine / floor, contest.wanted_of_floor, lower=True))
    if theirs:
        seconds = [run.printed["seconds"] for run in theirs]
        cells += [f"{contest.peer} {contest.peer_method}", spread(seconds)]
        cells.append(_judged(min(seconds) / mine, contest.wanted_faster, lower=False))
        alone = min(run.printed.get("in_memory", 0.0) for run in theirs)
        cells.append(f"{alone:.2f}, {alone / mine:.1f}" if alone else "")
        other_peak = min(run.peak_mib for run in theirs)
        cells += [around, f"{peak:.0f}", f"{other_peak:.0f}", f"{other_peak / peak:.1f}"]
    else:
        cells += ["", "", "", "", around, f"{peak:.0f}", "", ""]
    return f"| {' | '.join(cells)} |"


def _peer(contest: Contest, folders: Sequence[Path], cache: Path) -> Callable[[], Process]:
    named = {"mergekit": peers.mergekit_python, "fusion_bench": peers.fusion_bench_python}
    python, out = named[contest.peer](cache), cache / "out" / "bench" / contest.peer
    command = [python, "-P", peers.__file__, contest.peer, contest.peer_method]
    return lambda: run_process([*command, contest.peer_parameters, out, *folders])


def _floor(contest: Contest, folders: Sequence[Path], target: Path) -> float:
    """Return the seconds for reading the inputs and writing one output, in blocks."""
    read = folders[1:] if contest.method in WITHOUT_BASE else folders
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    begun = time.perf_counter()
    buffer = bytearray(_BLOCK)
    for number, folder in enumerate(read):
        with (folder / WEIGHTS).open("rb", buffering=0) as source, target.open("ab") as sink:
            while count := source.readinto(buffer):
                if number == 0:
                    sink.write(memoryview(buffer)[:count])
    return time.perf_counter() - begun


def _print_commands(contests: Sequence[Contest], cache: Path, repeats: int) -> None:
    folders, out = copy_samples(cache / "inputs", 4), cache / "out" / "bench"
    mergekit = peers.mergekit_python(cache).with_name("mergekit-pytorch")
    print("| method | afluente merge, s | mergekit-pytorch, s | theirs / ours |")
    print("| --- | --- | --- | --- |")
    for contest in contests:
        recipe = recipe_of(contest.method, folders, json.loads(contest.parameters))
        config = out / "mergekit.yaml"
        measure_command(recipe, out / "ours")  # uncounted: transformers looks at the base once
        peers.write_mergekit_config(config, contest.peer_method, contest.peer_parameters, folders)
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(measure_command(recipe, out / "ours").seconds)
            shutil.rmtree(out / "theirs", ignore_errors=True)
            theirs.append(run_process([mergekit, config, out / "theirs"]).seconds)
        ratio = min(theirs) / min(ours)
        judged = _judged(ratio, _WANTED_OF_COMMANDS, lower=False)
        print(f"| {contest.method} | {spread(ours)} | {spread(theirs)} | {judged} |", flush=True)


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
