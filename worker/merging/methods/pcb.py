"""PCB-Merging (Du et al. 2024): Σ sign(dᵢ)Aᵢ·scaleᵢ / Σ scaleᵢ, scales from competition scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from app.contract.catalogue.task_vector import Pcb
from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.order_statistics import ordered_keys
from worker.merging.ranks import HistogramSurvey, RankSurvey

_CLIPPED = 1e-4
_LEAST_SCALE = 1e-12
_LINEAR = 2.0**-13
"""Up to here tanh x is x, to float32 rounding; most task vectors' products are far smaller."""


@dataclass(frozen=True)
class Scores:
    """The competition scores βᵢ, given the sizes between which an expert's changes are clipped."""

    clips: tuple[tuple[float, float], ...]

    def __call__(self, inputs: MergeInputs) -> list[torch.Tensor]:
        """Return a block's scores as integers to rank."""
        return [ordered_keys(score) for score in self.of(inputs.tensors)]

    def of(self, tensors: torch.Tensor) -> list[torch.Tensor]:
        """Return a block's scores, flat, one tensor an expert; 0 where all sizes are equal."""
        flat = tensors.flatten(1)
        total = torch.zeros_like(flat[0])
        for values in flat:
            total += values
        return [self._score(flat, index, total) for index in range(len(flat))]

    def sizes(self, flat: torch.Tensor, index: int) -> torch.Tensor:
        """Return an expert's clipped sizes Aᵢ."""
        return flat[index].abs().clamp_(*self.clips[index])

    def _score(self, flat: torch.Tensor, index: int, total: torch.Tensor) -> torch.Tensor:
        low, high = self.clips[index]
        if high <= low:
            return torch.zeros_like(total)
        # Within the expert: exp(N·norm(A)²), over its largest value, which would overflow.
        within = self.sizes(flat, index).sub_(low).div_(high - low)
        within.mul_(within).sub_(1.0).mul_(len(flat)).exp_()
        between = torch.mul(flat[index], total)
        if float(between.abs().amax()) > _LINEAR:
            between.tanh_()
        # Adding 0 makes a negative zero positive: the two rank the same.
        return within.mul_(between).add_(0.0)


@dataclass(frozen=True)
class Known:
    """How to score, and each expert's score from which changes count, and largest score."""

    scores: Scores
    bounds: tuple[tuple[float, float], ...]


def survey(
    about: About, parameters: Pcb, finished: HistogramSurvey | RankSurvey | None
) -> Survey | Known:
    """Return quantiles: first those of the sizes, then those of the scores that follow."""
    if finished is None:
        return HistogramSurvey(about.experts)
    scores = finished.keys if isinstance(finished.keys, Scores) else None
    if isinstance(finished, HistogramSurvey):
        entries = finished.histogram.entries
        if scores is None:
            low = math.floor(entries * _CLIPPED)
            high = max(0, math.floor(entries * (1.0 - _CLIPPED)) - 1)
            return finished.find([entries - 1 - low, entries - 1 - high])
        least = min(entries - 1, math.floor(entries * (1.0 - parameters.ratio)))
        return finished.find([entries - 1 - least, 0])
    found = tuple((first.value, second.value) for first, second in finished.boundaries)
    if scores is None:
        about.diagnostics["clipped_to"] = [list(pair) for pair in found]
        return HistogramSurvey(about.experts, Scores(found), signed=True)
    return Known(scores, found)


def merge(inputs: MergeInputs, parameters: Pcb, known: Known) -> torch.Tensor:
    """Return the mean of the clipped changes, weighed by how far their scores pass the bound."""
    flat = inputs.tensors.flatten(1)
    total, divisor = torch.zeros_like(flat[0]), torch.zeros_like(flat[0])
    scored = zip(known.scores.of(inputs.tensors), known.bounds, strict=True)
    for index, (score, (least, most)) in enumerate(scored):
        if most <= least:
            continue
        scale = score.sub_(least).relu_().div_(most - least)
        divisor += scale
        total += known.scores.sizes(flat, index).copysign_(flat[index]).mul_(scale)
    total /= divisor.clamp_(min=_LEAST_SCALE)
    return total.view(inputs.tensors.shape[1:])
