"""BoostedTSV-M compared with the original algorithm on one device, by shape of matrix.

`python -m benchmarks.gpu` for a GPU and Whisper-large-v3; `--device cpu --shape tiny --experts 4`
runs anywhere. It also prints the device's rate for AFLUENTE_GPU_EIGH_SECONDS. Task matrices are
made on the device, seeded, of low rank plus noise, as differences of float16 weights. One matrix of
each shape is merged by both and counted as often as the model has it. The original is torch's SVD
of each task matrix, then of both concatenated bases, whatever our side orthogonalises with. Errors
are those of the whole result against float64 with the same orthogonalisation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch

from app.contract.catalogue import parse_parameters
from app.contract.catalogue.subspace import BoostedTsvM
from app.sources.architectures.whisper.shapes import expected_shapes
from benchmarks.in_memory import merge_in_memory
from benchmarks.inputs import SHAPES
from worker.merging.linalg.orthogonal import NEWTON_SCHULZ
from worker.merging.linalg.spectrum import boost

_WAYS = ("newton_schulz", "polar")
_BASE, _CHANGE, _NOISE, _RANK = 0.05, 0.001, 0.1, 8
_ROUNDOFF = 2.0**-11
_EIGH_SIZE = 1280
"""The size of the eigenproblem that AFLUENTE_GPU_EIGH_SECONDS is about."""


def main() -> None:
    """Print a row for each shape of matrix, and what a whole model's add up to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="large-v3")
    parser.add_argument("--experts", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--orthogonalization", choices=_WAYS, default=_WAYS[0])
    options = parser.parse_args()
    # The original leaves no noise out.
    given = {"orthogonalization": options.orthogonalization, "noise_floor": 0.0}
    parameters = parse_parameters("boosted_tsv_m", given)
    assert isinstance(parameters, BoostedTsvM)
    sizes = expected_shapes(SHAPES[options.shape].config).values()
    counts = Counter(size for size in sizes if len(size) == 2)
    print("| matrix | times | ours, s | original, s | original / ours | error | original's |")
    print(f"|{' --- |' * 7}")
    totals = [0.0, 0.0]
    for shape, count in counts.items():
        seconds, errors = _contest(shape, parameters, options)
        totals = [total + count * one for total, one in zip(totals, seconds, strict=True)]
        print(
            f"| {shape[0]} x {shape[1]} | {count} | {seconds[0]:.4f} | {seconds[1]:.4f} | "
            f"{seconds[1] / seconds[0]:.1f} | {errors[0]:.1e} | {errors[1]:.1e} |",
            flush=True,
        )
    print(f"| all | | {totals[0]:.2f} | {totals[1]:.2f} | {totals[1] / totals[0]:.1f} | | |")
    problem = torch.randn(_EIGH_SIZE, _EIGH_SIZE, dtype=torch.float64, device=options.device)
    seconds = _timed(lambda: torch.linalg.eigh(problem.mT @ problem).eigenvectors, options.repeats)
    print(f"\nAFLUENTE_GPU_EIGH_SECONDS={seconds:.3f}")


def _contest(
    shape: tuple[int, ...], parameters: BoostedTsvM, options: argparse.Namespace
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return seconds and errors of one matrix, ours and the original's."""
    base, tensors = _inputs((shape[0], shape[1]), options.experts, options.device)
    rank = max(1, min(shape) // options.experts)
    ours = partial(_merged, base, tensors, parameters)
    original = partial(_original, tensors, rank, parameters)
    exact = parameters.model_copy(update={"orthogonalization": "polar"})
    errors = (
        _error(ours(), _reference(tensors, rank, parameters)),
        _error(original(), _reference(tensors, rank, exact)),
    )
    return (_timed(ours, options.repeats), _timed(original, options.repeats)), errors


def _inputs(shape: tuple[int, int], experts: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a base and task matrices, float32, both of float16 weights."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=device)

    base = (_BASE * normal(*shape)).half()
    tensors = []
    for _ in range(experts):
        falling = torch.arange(1, _RANK + 1, device=device)[:, None]
        low = normal(shape[0], _RANK) @ (normal(_RANK, shape[1]) / falling) / _RANK**0.5
        expert = (base.float() + _CHANGE * (low + _NOISE * normal(*shape))).half()
        tensors.append(expert.float() - base.float())
    return base.float(), torch.stack(tensors)


def _merged(base: torch.Tensor, tensors: torch.Tensor, parameters: BoostedTsvM) -> torch.Tensor:
    given = parameters.model_dump(exclude_unset=True)
    found = merge_in_memory("boosted_tsv_m", tensors, base=base, unit_roundoff=_ROUNDOFF, **given)
    return found.tensor


def _original(tensors: torch.Tensor, rank: int, parameters: BoostedTsvM) -> torch.Tensor:
    left, strengths, right = _kept(tensors, rank, parameters)
    return _procrustes(left) * strengths @ _procrustes(right).mT


def _reference(tensors: torch.Tensor, rank: int, parameters: BoostedTsvM) -> torch.Tensor:
    left, strengths, right = _kept(tensors.double(), rank, parameters)
    polar = parameters.orthogonalization == "polar"
    way: Callable[[torch.Tensor], torch.Tensor] = _procrustes if polar else _iterated
    return way(left) * strengths @ way(right).mT


def _kept(
    tensors: torch.Tensor, rank: int, parameters: BoostedTsvM
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the experts' first directions, concatenated, and their boosted strengths."""
    left, strengths, right = [], [], []
    for tensor in tensors:
        u, values, vh = torch.linalg.svd(tensor, full_matrices=False)
        left.append(u[:, :rank])
        strengths.append(boost(values, parameters.beta, parameters.energy)[0][:rank])
        right.append(vh[:rank].mT)
    return torch.cat(left, 1), torch.cat(strengths), torch.cat(right, 1)


def _procrustes(bases: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(bases, full_matrices=False)
    factor: torch.Tensor = u @ vh
    return factor


def _iterated(bases: torch.Tensor) -> torch.Tensor:
    x = bases / torch.linalg.matrix_norm(bases)
    for a, b, c in NEWTON_SCHULZ:
        squares = x.mT @ x
        x = a * x + x @ (b * squares + c * squares @ squares)
    return x


def _timed(work: Callable[[], torch.Tensor], repeats: int) -> float:
    """Return the median of some runs, each to its end on the device; it has run before."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        float(work()[0, 0])
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def _error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.dist(result.double(), expected) / expected.norm())


if __name__ == "__main__":
    main()
