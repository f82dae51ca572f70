"""SCE (Wan et al. 2024): Σ qᵢmᵢdᵢ / Σ qᵢmᵢ over the entries where the experts differ most."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from app.contract.catalogue.task_vector import Sce
from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.agreement import (
    agreeing_sum,
    clear_unselected,
    selected_energies,
    spread,
)
from worker.merging.linalg.order_statistics import (
    ALL,
    NONE,
    Boundary,
    Chunk,
    Place,
    bucket_boundary,
)
from worker.merging.ranks import HistogramSurvey, RankSurvey


class SpreadSurvey(HistogramSurvey):
    """Ranks the entries by their standard deviation over the experts, and counts those above 0."""

    def __init__(self) -> None:
        super().__init__(1, _spreads)
        self.nonzero = 0

    def add(self, inputs: MergeInputs) -> None:
        """Count a block's."""
        spreads, nonzero = spread(inputs.tensors)
        self.nonzero += nonzero
        self.histogram.add(0, spreads)

    def join(self, later: Self) -> None:
        """Count those of later blocks."""
        super().join(later)
        self.nonzero += later.nonzero


class EnergySurvey(Survey):
    """Sums the squares of each expert's changes: of all, or of none."""

    def __init__(self, experts: int, selection: Boundary) -> None:
        self.selection = selection
        self.energies = torch.zeros(experts, dtype=torch.float64)

    @property
    def question(self) -> Hashable:
        """Which changes are summed."""
        return type(self), len(self.energies), self.selection

    def add(self, inputs: MergeInputs) -> None:
        """Add those of a block."""
        if self.selection is ALL:
            ranked = inputs.tensors[0].reshape(-1)
            self.energies += selected_energies(inputs.tensors, ranked, ALL, inputs.start)

    def join(self, later: Self) -> None:
        """Add those of later blocks."""
        self.energies += later.energies


class SelectionSurvey(Survey):
    """Finds the boundary of the selected spreads, and each expert's energy within it.

    Above the boundary's bucket all is selected. What is in the bucket is kept aside with its
    changes, until it is known where in the bucket the boundary is.
    """

    def __init__(self, experts: int, place: Place, ranks: RankSurvey) -> None:
        self._ranks = ranks
        self._place = place
        self._surely = bucket_boundary(place.bucket)
        self._energies = torch.zeros(experts, dtype=torch.float64)
        self._doubtful: list[tuple[Chunk, torch.Tensor]] = []

    @property
    def question(self) -> Hashable:
        """Which spread is looked for."""
        return type(self), len(self._energies), self._place

    def add(self, inputs: MergeInputs) -> None:
        """Add a block's."""
        ranked, _ = spread(inputs.tensors)
        self._energies += selected_energies(inputs.tensors, ranked, self._surely, inputs.start)
        for chunk in self._ranks.candidates.add(0, ranked, inputs.start):
            changes = inputs.tensors.flatten(1)[:, torch.from_numpy(chunk.offsets)]
            self._doubtful.append((chunk, changes))

    def join(self, later: Self) -> None:
        """Add those of later blocks."""
        self._ranks.join(later._ranks)
        self._energies += later._energies
        self._doubtful += later._doubtful

    @property
    def selection(self) -> Boundary:
        """The boundary of the selected spreads."""
        return self._ranks.boundaries[0][0]

    @property
    def energies(self) -> torch.Tensor:
        """Each expert's Σ dᵢ² over the selected entries, float64."""
        boundary, total = self.selection, self._energies.clone()
        for chunk, changes in self._doubtful:
            kept = changes[:, torch.from_numpy(chunk.kept(boundary))]
            total += kept.double().square().sum(1)
        return total


@dataclass(frozen=True)
class Known:
    """The experts' coefficients qᵢ, and the boundary of the selected spreads."""

    coefficients: tuple[float, ...]
    selection: Boundary


def survey(
    about: About,
    parameters: Sce,
    finished: SpreadSurvey | SelectionSurvey | EnergySurvey | None,
) -> Survey | Known:
    """Return the selection and the coefficients; equal ones where no change is selected."""
    experts = about.experts
    if isinstance(finished, EnergySurvey | SelectionSurvey):
        energies = finished.energies
        total = energies.sum()
        shares = energies / total if total > 0.0 else torch.full((experts,), 1.0 / experts)
        about.diagnostics["coefficients"] = shares.tolist()
        return Known(tuple(shares.tolist()), finished.selection)
    if isinstance(finished, SpreadSurvey):
        kept = math.floor(parameters.select_topk * finished.nonzero)
        about.diagnostics["selected"] = kept
        if kept == 0:
            return EnergySurvey(experts, NONE)
        (place,) = finished.histogram.find(0, [kept - 1])
        return SelectionSurvey(experts, place, finished.find([kept - 1]))
    # A single expert varies nowhere: there is nothing to select it away for.
    everything = parameters.select_topk == 1.0 or experts == 1
    return EnergySurvey(experts, ALL) if everything else SpreadSurvey()


def merge(inputs: MergeInputs, parameters: Sce, known: Known) -> torch.Tensor:
    """Return the weighted mean of the selected changes that have the majority's sign."""
    parts = inputs.tensors
    merged, agreeing = agreeing_sum(parts, known.coefficients, weighted_votes=False, normalize=True)
    inputs.count("agreeing", agreeing)
    if known.selection is not ALL:
        spreads, _ = spread(parts)
        clear_unselected(merged, spreads, known.selection, inputs.start)
    return merged


def _spreads(inputs: MergeInputs) -> Sequence[torch.Tensor]:
    return [spread(inputs.tensors)[0]]
