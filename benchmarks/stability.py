"""How far a relative input change of 1e-6 moves the output, for every way to orthogonalise.

The experts share a component ten times larger than what is their own, so that their dominant
singular directions nearly coincide. Run: `python -m benchmarks.stability`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from app.contract.catalogue import CATALOGUE
from benchmarks.in_memory import merge_in_memory
from benchmarks.original import original

CHANGE = 1e-6
_BASE_RMS = 0.05
VARIANTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("boosted_tsv_m", {}),
    ("boosted_tsv_m", {"orthogonalization": "polar"}),
    ("boosted_tsv_m", {"orthogonalization": "svd"}),
    ("tsv_m", {"orthogonalization": "newton_schulz"}),
    ("tsv_m", {}),
    ("tsv_m", {"orthogonalization": "svd"}),
    ("iso_cts", {"orthogonalization": "newton_schulz"}),
    ("iso_cts", {}),
    ("iso_cts", {"orthogonalization": "svd"}),
    ("iso_c", {}),
)


class Movement(NamedTuple):
    """One method and orthogonalisation, and what the change did to its output."""

    method: str
    orthogonalization: str
    relative: float


def sharing_experts(
    shape: tuple[int, int], rank: int, experts: int = 4, *, ratio: float = 10.0, seed: int = 0
) -> torch.Tensor:
    """Return float32 task matrices, one shared component `ratio` times larger than each one's own.

    What is shared and what is own have `rank` singular values each, which fall by ten.
    """
    generator = torch.Generator().manual_seed(seed)
    shared, *own = (_component(shape, rank, generator) for _ in range(experts + 1))
    return torch.stack([ratio * shared + one for one in own]).float() * 1e-3


def movements(
    shape: tuple[int, int], rank: int, experts: int = 4, *, ratio: float = 10.0, seed: int = 0
) -> Iterator[Movement]:
    """Yield the relative change of every variant's output."""
    tensors = sharing_experts(shape, rank, experts, ratio=ratio, seed=seed)
    noise = torch.randn(tensors.shape, generator=torch.Generator().manual_seed(seed + 1))
    changed = tensors + CHANGE * noise * tensors.norm() / noise.norm()
    for method, options in VARIANTS:
        before, after = (_merge(method, x, options) for x in (tensors, changed))
        defaults = CATALOGUE[method].model_fields
        default = defaults["orthogonalization"].default if "orthogonalization" in defaults else "-"
        chosen = options.get("orthogonalization", default)
        yield Movement(method, chosen, float(torch.dist(after, before) / before.norm()))


def _component(shape: tuple[int, int], rank: int, generator: torch.Generator) -> torch.Tensor:
    m, n = shape
    u, v = (
        torch.linalg.qr(torch.randn(side, rank, dtype=torch.float64, generator=generator)).Q
        for side in (m, n)
    )
    return u @ torch.diag(torch.logspace(0, -1, rank, dtype=torch.float64)) @ v.T


def _merge(method: str, tensors: torch.Tensor, options: dict[str, str]) -> torch.Tensor:
    if options.get("orthogonalization") == "svd":
        return original(method, tensors)
    base = torch.full(tensors.shape[1:], _BASE_RMS)
    return merge_in_memory(method, tensors, base=base, **options).tensor


def main() -> None:
    """Print one table a shape."""
    torch.set_num_threads(1)
    for shape in ((384, 384), (1536, 384), (384, 1536)):
        for rank in (min(shape), min(shape) // 8):
            print(f"\n{shape[0]} x {shape[1]}, 4 experts, shared and own part of rank {rank}\n")
            print(f"| method | orthogonalization | {CHANGE:.0e} of the input moves the output by |")
            print("| --- | --- | --- |")
            for method, how, relative in movements(shape, rank):
                print(f"| {method} | {how} | {relative:.1e} |")


if __name__ == "__main__":
    main()
