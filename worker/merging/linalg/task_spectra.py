"""The experts' task matrices decomposed, with rounding noise set apart from what was learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.spectra import effective_rank, kept_energy, noise_floor, stable_rank
from worker.merging.linalg.svd import Decomposition, decompose


@dataclass(frozen=True)
class TaskSpectrum:
    """One expert's task matrix, without its weight, λ or boost: what sweeps over those reuse.

    Attributes:
        decomposition: of the whole task matrix.
        singular_values: those above the noise floor, float64, descending.
        floor: τ.
    """

    decomposition: Decomposition
    singular_values: Float[Tensor, " r"]
    floor: float

    @property
    def noise_directions(self) -> int:
        """How many singular directions are at or under the floor."""
        return len(self.decomposition.singular_values) - len(self.singular_values)

    def describe(self, rank: int) -> dict[str, Any]:
        """Return the diagnostics of an expert of whom `rank` directions are kept."""
        everything = self.decomposition.singular_values
        return {
            "norm": float(everything.norm()),
            "stable_rank": stable_rank(self.singular_values),
            "effective_rank": effective_rank(self.singular_values),
            "kept_rank": min(rank, len(self.singular_values)),
            "kept_energy": kept_energy(self.singular_values, rank),
            "noise_floor": self.floor,
            "noise_directions": self.noise_directions,
        }


def task_spectra(
    task_vectors: Float[Tensor, "experts m n"],
    base: Float[Tensor, "m n"] | None,
    *,
    unit_roundoff: float,
    factor: float,
) -> list[TaskSpectrum]:
    """Return one spectrum an expert, one decomposition at a time.

    The floor is taken of the task matrix before its weight: the weight scales signal and noise.
    """
    rms = 0.0 if base is None else float(torch.linalg.vector_norm(base)) / base.numel() ** 0.5
    shape = (task_vectors.shape[-2], task_vectors.shape[-1])
    spectra = []
    for matrix in task_vectors:
        decomposition = decompose(matrix)
        values = decomposition.singular_values
        floor = noise_floor(values, shape, unit_roundoff=unit_roundoff, base_rms=rms, factor=factor)
        rank = int((values > floor).sum())
        spectra.append(TaskSpectrum(decomposition, values[:rank], floor))
    return spectra
