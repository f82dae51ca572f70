"""How busy many cores would be in a merge, by the plan's costs: where the tail is.

`python -m benchmarks.cores --shape large-v3 --experts 10 --method boosted_tsv_m`. Tensors are taken
as the engine takes them, the costliest first, each by one core. Of a matrix that is cut into
stretches the stretches are shared out; what follows from their sums is done by one core. Memory is
no limit here.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Sequence

from app.contract.recipe import parse_request
from app.contract.tensors import TensorHeader
from app.planning.cost import STRETCH_ENTRIES
from app.planning.plan import Plan, Step, make_plan
from app.sources.architectures.whisper.shapes import expected_shapes
from benchmarks.inputs import SHAPES


def plan_of(shape: str, experts: int, method: str) -> Plan:
    """Return the plan of a merge of float16 checkpoints of a Whisper's shape."""
    tensors = {}
    for name, size in expected_shapes(SHAPES[shape].config).items():
        header = TensorHeader(name, "F16", size, "f", 0, 0)
        tensors[name] = TensorHeader(name, "F16", size, "f", 0, 2 * header.numel)
    uris = [f"file:///{number}" for number in range(experts)]
    recipe = parse_request({"base": "file:///b", "checkpoints": uris, "method": method}).recipe
    return make_plan(recipe, tensors, tensors, [tensors] * experts)


def makespan(steps: Sequence[Step], cores: int) -> float:
    """Return the operations that the busiest core does, taking the costliest step first."""
    free = [0.0] * cores
    for step in sorted(steps, key=lambda step: step.cost.flops, reverse=True):
        for operations in _in_sequence(step):
            ends = []
            for part in operations:
                ends.append(heapq.heappop(free) + part)
                heapq.heappush(free, ends[-1])
    return max(free)


def _in_sequence(step: Step) -> list[list[float]]:
    """Return what a step's parts cost: those that run in parallel, then what follows from them."""
    whole, entries = float(step.cost.flops), step.target.numel
    if step.cut.piece >= entries or entries <= STRETCH_ENTRIES:
        return [[whole]]
    parts = -(-entries // STRETCH_ENTRIES)
    rows = max(step.target.shape) / min(step.target.shape) if len(step.target.shape) == 2 else 1
    shared = whole * 3 * rows / (3 * rows + 8)
    return [[shared / parts] * parts, [whole - shared]]


def main() -> None:
    """Print a row for each number of cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="large-v3")
    parser.add_argument("--experts", type=int, default=10)
    parser.add_argument("--method", default="boosted_tsv_m")
    options = parser.parse_args()
    steps = plan_of(options.shape, options.experts, options.method).steps
    total = sum(step.cost.flops for step in steps)
    print("| cores | busy | the costliest tensor's share of the time |")
    print("| --- | --- | --- |")
    for cores in (2, 16, 64):
        longest = makespan(steps, cores)
        largest = max(sum(map(max, _in_sequence(step))) for step in steps)
        print(f"| {cores} | {total / cores / longest:.0%} | {largest / longest:.0%} |")


if __name__ == "__main__":
    main()
