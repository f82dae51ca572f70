"""PCB-Merging (Du et al. 2024): Σ sign(dᵢ)Aᵢ·scaleᵢ / Σ scaleᵢ, scales from competition scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from app.contract.catalogue.task_vector import Pcb
from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.order_statistics import Histogram, ordered_keys
from worker.merging.ranks import HistogramSurvey, RankSurvey

_CLIPPED = 1e-4
_LEAST_SCALE = 1e-12
_LINEAR = 2.0**-13
"""Up to here tanh x is x, to float32 rounding; most task vectors' products are far smaller."""


@dataclass(frozen=True)
class Scores:
    """The competition scores βᵢ, given the sizes between which an expert's changes are clipped.

    `small` says that tanh of any product is the product itself.
    """

    clips: tuple[tuple[float, float], ...]
    small: bool

    def __call__(self, inputs: MergeInputs) -> list[torch.Tensor]:
        """Return a block's scores as integers to rank."""
        flat = inputs.tensors.flatten(1)
        total = _total(flat)
        return [ordered_keys(self.of(flat, index, total)) for index in range(len(flat))]

    def of(self, flat: torch.Tensor, index: int, total: torch.Tensor) -> torch.Tensor:
        """Return an expert's scores of a block; 0 where all its sizes are equal."""
        low, high = self.clips[index]
        if high <= low:
            return torch.zeros_like(total)
        # Within the expert: exp(N·norm(A)²), over its largest value, which would overflow.
        within = self.sizes(flat, index).sub_(low).mul_(math.sqrt(len(flat)) / (high - low))
        within.mul_(within).sub_(len(flat)).exp_()
        if self.small:
            within.mul_(flat[index]).mul_(total)
        else:
            within.mul_(torch.mul(flat[index], total).tanh_())
        # Adding 0 makes a negative zero positive: the two rank the same.
        return within.add_(0.0)

    def sizes(self, flat: torch.Tensor, index: int) -> torch.Tensor:
        """Return an expert's clipped sizes Aᵢ."""
        return flat[index].abs().clamp_(*self.clips[index])


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
        return HistogramSurvey(
            about.experts, Scores(found, _small(finished.histogram)), signed=True
        )
    return Known(scores, found)


def merge(inputs: MergeInputs, parameters: Pcb, known: Known) -> torch.Tensor:
    """Return the mean of the clipped changes, weighed by how far their scores pass the bound."""
    flat = inputs.tensors.flatten(1)
    total, divisor = torch.zeros_like(flat[0]), torch.zeros_like(flat[0])
    summed = _total(flat)
    for index, (least, most) in enumerate(known.bounds):
        if most <= least:
            continue
        scale = known.scores.of(flat, index, summed).sub_(least).relu_().div_(most - least)
        divisor += scale
        total += known.scores.sizes(flat, index).copysign_(flat[index]).mul_(scale)
    total /= divisor.clamp_(min=_LEAST_SCALE)
    return total.view(inputs.tensors.shape[1:])


def _small(sizes: Histogram) -> bool:
    """Say whether no product dᵢ·Σⱼdⱼ is so large that its tanh is another number."""
    largest = [sizes.largest(index) for index in range(len(sizes.counts))]
    return max(largest) * math.fsum(largest) <= _LINEAR


def _total(flat: torch.Tensor) -> torch.Tensor:
    """Return Σⱼdⱼ, entry by entry."""
    total = torch.zeros_like(flat[0])
    for values in flat:
        total += values
    return total
