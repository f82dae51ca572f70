"""PCB-Merging (Du et al. 2024): Σ sign(dᵢ)Aᵢ·scaleᵢ / Σ scaleᵢ, scales from competition scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.contract.catalogue.task_vector import Pcb
from worker.merging import native
from worker.merging.combines import Band
from worker.merging.linalg.ops import flat
from worker.merging.method import Block, Combine, Notes, Steps, Subject, merges
from worker.merging.reductions import Histogram, Sizes, Stream, order_statistics

_CLIPPED = 1e-4
_LEAST_SCALE = 1e-12
_LINEAR = 2.0**-13
"""Up to here tanh x is x, to float32 rounding; most task vectors' products are far smaller."""


@merges(Pcb)
def pcb(x: Subject, p: Pcb) -> Steps:
    """Clip each expert's sizes to quantiles, score them, average what passes its score's quantile.

    A change's scale goes from 0 at the (1 − ratio) quantile of the scores to 1 at the largest.
    """
    n = x.entries
    if n == 0:
        return Competition((), (), linear=True)
    smallest, largest = math.floor(n * _CLIPPED), max(0, math.floor(n * (1.0 - _CLIPPED)) - 1)
    counted = yield Histogram(Sizes())
    sizes = yield from order_statistics(counted, [n - 1 - smallest, n - 1 - largest])
    clips = tuple((low, high) for low, high in sizes)
    greatest = [counted.largest(expert) for expert in range(x.experts)]
    linear = max(greatest) * math.fsum(greatest) <= _LINEAR
    x.notes.diagnostics["clipped_to"] = [list(pair) for pair in clips]
    counted = yield Histogram(Scores(clips, linear))
    quantile = n - 1 - min(n - 1, math.floor(n * (1.0 - p.ratio)))
    scores = yield from order_statistics(counted, [quantile, 0])
    return Competition(clips, [(least, most) for least, most in scores], linear)


@dataclass(frozen=True)
class Scores(Stream):
    """βᵢ = exp(N·(norm(Aᵢ)² − 1))·tanh(dᵢ·Σⱼdⱼ), Aᵢ = |dᵢ| clipped to an expert's sizes.

    0 where all of an expert's sizes are equal. `linear` says that tanh of any product is itself.
    """

    clips: tuple[Band, ...]
    linear: bool

    def __call__(self, block: Block) -> Sequence[torch.Tensor]:
        """Return the block's scores, one row an expert."""
        tensors = flat(block.tensors)
        scores = torch.empty(tensors.shape)
        native.competition_scores(tensors, *_columns(self.clips), self.linear, scores)
        return list(scores)


@dataclass(frozen=True)
class Competition(Combine):
    """Σ sign(dᵢ)Aᵢ·scaleᵢ / max(Σ scaleᵢ, 1e-12), scaleᵢ the score's place between its bounds."""

    clips: Sequence[Band]
    bounds: Sequence[Band]
    linear: bool

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the mean."""
        result = torch.empty(block.tensors.shape[1:])
        native.competition_mean(
            flat(block.tensors),
            *_columns(self.clips),
            self.linear,
            *_columns(self.bounds),
            _LEAST_SCALE,
            result.view(-1),
        )
        return result


def _columns(pairs: Sequence[Band]) -> tuple[list[float], list[float]]:
    return [lower for lower, _ in pairs], [upper for _, upper in pairs]
