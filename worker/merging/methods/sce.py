"""SCE (Wan et al. 2024): Σ qᵢmᵢdᵢ / Σ qᵢmᵢ over the entries where the experts differ most."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Self

import torch

from app.contract.catalogue.task_vector import Sce
from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.agreement import agreeing_sum, elect_signs
from worker.merging.linalg.order_statistics import Boundary, keep_largest, magnitude_keys
from worker.merging.ranks import HistogramSurvey, RankSurvey

_MOST_BITS = 120
"""A power of two beyond which float32 has no reciprocal."""


@dataclass(frozen=True)
class Selection:
    """The boundary of the selected entries' spreads; None where none is selected."""

    boundary: Boundary | None

    def mask(self, inputs: MergeInputs) -> torch.Tensor:
        """Return 1 for the selected entries of a block, 0 for the others; flat."""
        if self.boundary is None:
            return torch.zeros_like(inputs.tensors[0]).reshape(-1)
        return keep_largest(_spread(inputs.tensors), self.boundary, inputs.start).sign_()


class SpreadSurvey(HistogramSurvey):
    """Ranks the entries by their standard deviation over the experts, and counts those above 0."""

    def __init__(self) -> None:
        super().__init__(1, _spread_keys)
        self.nonzero = 0

    def add(self, inputs: MergeInputs) -> None:
        """Count a block's."""
        (keys,) = self.keys(inputs)
        self.nonzero += int(torch.count_nonzero(keys))
        self.histogram.add(0, keys)

    def join(self, later: Self) -> None:
        """Count those of later blocks."""
        super().join(later)
        self.nonzero += later.nonzero


class EnergySurvey(Survey):
    """Sums the squares of each expert's selected changes."""

    def __init__(self, experts: int, selection: Selection | None) -> None:
        self.selection = selection
        self.energies = torch.zeros(experts, dtype=torch.float64)

    @property
    def question(self) -> Hashable:
        """Which changes are summed."""
        return type(self), len(self.energies), self.selection

    def add(self, inputs: MergeInputs) -> None:
        """Add those of a block."""
        mask = None if self.selection is None else self.selection.mask(inputs)
        for index, tensor in enumerate(inputs.tensors):
            values = tensor.reshape(-1)
            wide = (values if mask is None else values * mask).double()
            self.energies[index] += torch.dot(wide, wide).cpu()

    def join(self, later: Self) -> None:
        """Add those of later blocks."""
        self.energies += later.energies


@dataclass(frozen=True)
class Known:
    """The experts' coefficients qᵢ, and which entries are selected (None: all)."""

    coefficients: tuple[float, ...]
    selection: Selection | None


def survey(
    about: About,
    parameters: Sce,
    finished: SpreadSurvey | RankSurvey | EnergySurvey | None,
) -> Survey | Known:
    """Return the selection and the coefficients; equal ones where no change is selected."""
    experts = about.experts
    if isinstance(finished, EnergySurvey):
        total = finished.energies.sum()
        shares = finished.energies / total if total > 0.0 else torch.full((experts,), 1.0 / experts)
        about.diagnostics["coefficients"] = shares.tolist()
        return Known(tuple(shares.tolist()), finished.selection)
    if isinstance(finished, SpreadSurvey):
        kept = math.floor(parameters.select_topk * finished.nonzero)
        about.diagnostics["selected"] = kept
        return finished.find([kept - 1]) if kept else EnergySurvey(experts, Selection(None))
    if isinstance(finished, RankSurvey):
        return EnergySurvey(experts, Selection(finished.boundaries[0][0]))
    # A single expert varies nowhere: there is nothing to select it away for.
    everything = parameters.select_topk == 1.0 or experts == 1
    return EnergySurvey(experts, None) if everything else SpreadSurvey()


def merge(inputs: MergeInputs, parameters: Sce, known: Known) -> torch.Tensor:
    """Return the weighted mean of the selected changes that have the majority's sign."""
    parts = [tensor.reshape(-1) for tensor in inputs.tensors]
    merged, agreeing = agreeing_sum(parts, known.coefficients, elect_signs(parts), normalize=True)
    inputs.count("agreeing", agreeing)
    if known.selection is not None:
        merged *= known.selection.mask(inputs)
    return merged.view(inputs.tensors.shape[1:])


def _spread_keys(inputs: MergeInputs) -> list[torch.Tensor]:
    """Return one stream, in the order of the spreads."""
    return [magnitude_keys(_spread(inputs.tensors))]


def _spread(tensors: torch.Tensor) -> torch.Tensor:
    """Return the population standard deviation over the experts, flat: it ranks as variance does.

    Of differences to the first expert, which are 0 where all are equal, scaled by a power of two,
    so that squares neither vanish nor overflow.
    """
    flat = tensors.flatten(1)
    count, differences = len(flat), flat[1:] - flat[0]
    low, high = differences.aminmax()
    exponent = math.frexp(max(-float(low), float(high)))[1]
    scale = 2.0 ** min(max(-exponent, -_MOST_BITS), _MOST_BITS)
    differences *= scale
    mean = torch.zeros_like(flat[0])
    for row in differences:
        mean += row
    mean /= count
    variance = mean * mean
    for row in differences:
        row -= mean
        variance.addcmul_(row, row)
    return variance.div_(count).sqrt_().mul_(1.0 / scale)
