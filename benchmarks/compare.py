"""Two commits side by side: what merges take, as ratios of HEAD to BASE.

Each commit is exported and compiled once, under the cache. Every merge is a fresh process that
hashes its inputs, and the commits take turns. Other programs on the machine only ever add to a
time, so the best of the repeats is compared; ± is how far the repeats of one commit are apart. What
is worse by more than 15 %, and than every repeat of BASE, is bold. A commit compared with itself
shows the noise.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks.inputs import SHAPES, copy_samples, forget_digests, make_inputs
from benchmarks.measure import (
    ROOT,
    Merge,
    Process,
    measure_command,
    measure_merge,
    names,
    recipe_of,
)
from benchmarks.peers import build_python

T = TypeVar("T")
_METHODS = ("task_arithmetic", "ties", "pcb", "iso_c", "boosted_tsv_m")
_METHOD_OF_COMMANDS = "task_arithmetic"
_WORSE = 1.15


class Column(NamedTuple):
    """A figure of a merge, and how it is printed."""

    title: str
    value: Callable[[Merge], float]
    digits: int = 2
    more_is_better: bool = False


_COLUMNS = (
    Column("whole, s", lambda merge: merge.whole),
    Column("its CPU, s", lambda merge: merge.whole_cpu),
    Column("first tensor, s", lambda merge: merge.first_tensor),
    Column("its CPU, s", lambda merge: merge.first_tensor_cpu),
    Column("CPU s a second", lambda merge: merge.cores, more_is_better=True),
    Column("threads ready", lambda merge: merge.ready, more_is_better=True),
    Column("peak MiB", lambda merge: merge.peak_mib, 0),
)


def main() -> None:
    """Print the command `afluente merge`, with the samples and the first shape; then all merges."""
    options = _options()
    cache = options.cache.absolute()
    commits = [_commit(name) for name in (options.base, options.head)]
    trees = [_tree(commit, cache) for commit in commits]
    settings = {
        "AFLUENTE_THREADS": options.threads and str(options.threads),
        "AFLUENTE_MEMORY_BYTES": options.memory and str(options.memory * 2**20),
    }
    settings = {name: value for name, value in settings.items() if value}
    inputs = {"samples": copy_samples(cache / "inputs", 1 + options.experts)}
    for name in options.shapes:
        inputs[name] = make_inputs(cache / "inputs", SHAPES[name], options.experts)
    out = cache / "out" / "compare"
    shutil.rmtree(out, ignore_errors=True)
    print(
        f"BASE {commits[0][:10]}, HEAD {commits[1][:10]}; base and {options.experts} experts; best "
        f"of {options.repeats}; {len(os.sched_getaffinity(0))} cores {settings or ''}\n"
    )
    _print_header("shape", "afluente merge", "from start to exit, s", "its CPU, s")
    for shape in ("samples", options.shapes[0]):
        _print_commands(shape, _Turns(trees, inputs[shape], out, options.repeats, settings))
    print()
    _print_header("shape", "method", *(column.title for column in _COLUMNS))
    for shape in options.shapes:
        turns = _Turns(trees, inputs[shape], out, options.repeats, settings)
        # Uncounted: transformers looks at the base once, and the inputs are in memory then.
        turns._replace(repeats=1).merges(_METHOD_OF_COMMANDS)
        for method in options.methods:
            _print_merges(shape, method, turns)
    shutil.rmtree(out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", metavar="BASE", help="a commit")
    parser.add_argument("head", metavar="HEAD", nargs="?", default="HEAD", help="another")
    parser.add_argument("--methods", type=names, default=_METHODS, help=",".join(_METHODS))
    parser.add_argument("--shapes", type=names, default=("tiny", "layer"), help=",".join(SHAPES))
    parser.add_argument("--experts", type=int, choices=(1, 2, 3), default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--memory", type=int, help="working memory in MiB")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    options = parser.parse_args()
    if unknown := set(options.shapes) - set(SHAPES):
        parser.error(f"--shapes: {', '.join(unknown)} is none of {', '.join(SHAPES)}")
    return options


class _Turns(NamedTuple):
    """Merges the same checkpoints with both trees, by turns."""

    trees: Sequence[Path]
    folders: Sequence[Path]
    out: Path
    repeats: int
    settings: Mapping[str, str]

    def merges(self, method: str) -> list[list[Merge]]:
        """Return each tree's merges."""
        recipe = recipe_of(method, self.folders)
        return self._each(lambda tree, out: measure_merge(recipe, out, tree, **self.settings))

    def commands(self, *, first_use: bool) -> list[list[Process]]:
        """Return each tree's commands."""
        recipe = recipe_of(_METHOD_OF_COMMANDS, self.folders)

        def measure(tree: Path, out: Path) -> Process:
            if first_use:
                shutil.rmtree(out.with_name("data"), ignore_errors=True)
            return measure_command(recipe, out, tree, **self.settings)

        return self._each(measure)

    def _each(self, measure: Callable[[Path, Path], T]) -> list[list[T]]:
        found: list[list[T]] = [[], []]
        for repeat in range(self.repeats):
            for side in (0, 1) if repeat % 2 == 0 else (1, 0):
                forget_digests(self.folders)
                found[side].append(measure(self.trees[side], self.out / str(side) / "merged"))
        return found


def _print_commands(shape: str, turns: _Turns) -> None:
    for first_use in (True, False):
        what = f"{_METHOD_OF_COMMANDS}{', first use' if first_use else ''}"
        sides = turns.commands(first_use=first_use)
        wall = _compared([[run.seconds for run in runs] for runs in sides])
        cpu = _compared([[run.cpu_seconds for run in runs] for runs in sides])
        _print_row(shape, what, wall, cpu)


def _print_merges(shape: str, method: str, turns: _Turns) -> None:
    sides = turns.merges(method)
    cells = [
        _compared(
            [[column.value(merge) for merge in merges] for merges in sides],
            column.digits,
            more_is_better=column.more_is_better,
        )
        for column in _COLUMNS
    ]
    _print_row(shape, method, *cells)


def _compared(
    sides: Sequence[Sequence[float]], digits: int = 2, *, more_is_better: bool = False
) -> str:
    """Return "BASE → HEAD (ratio ± spread)" of the best repeats."""
    best, worst = (max, min) if more_is_better else (min, max)
    base, head = map(best, sides)
    spread = max(max(values) / min(values) - 1 for values in sides)
    ratio = head / base
    worse = (1 / ratio if more_is_better else ratio) > _WORSE
    apart = best(head, worst(sides[0])) != head
    mark = "**" if worse and apart else ""
    return f"{base:.{digits}f} → {head:.{digits}f} ({mark}{ratio:.2f}{mark} ± {spread:.2f})"


def _print_header(*titles: str) -> None:
    _print_row(*titles)
    _print_row(*["---"] * len(titles))


def _print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _commit(name: str) -> str:
    command = ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"{name} is no commit of {ROOT}")
    return found.stdout.strip()


def _tree(commit: str, cache: Path) -> Path:
    """Return a folder with a commit's code and its compiled kernels, made where it is lacking."""
    tree = cache / "trees" / commit
    if tree.exists():
        return tree
    print(f"exporting and compiling {commit[:10]} (once)", file=sys.stderr)
    unfinished = tree.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(unfinished, filter="data")
    # The compiler that users get. Where it is not installed, it comes into a folder of its own.
    installed = "AFLUENTE_CC" in os.environ or find_spec("ziglang")
    python = sys.executable if installed else build_python(cache)
    build = [python, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(build, cwd=unfinished, stdout=subprocess.DEVNULL, check=True)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "."], cwd=unfinished, check=False)
    return unfinished.rename(tree)


if __name__ == "__main__":
    main()
