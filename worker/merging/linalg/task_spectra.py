"""The experts' task matrices decomposed, with rounding noise set apart from what was learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.spectra import effective_rank, kept_energy, noise_floor, stable_rank
from worker.merging.linalg.svd import Decomposition, decompose, decompose_all


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a task matrix, with those that are noise set apart.

    Attributes:
        everything: all of them, float64, descending.
        singular_values: those above the noise floor.
        floor: τ.
    """

    everything: Float[Tensor, " p"]
    singular_values: Float[Tensor, " r"]
    floor: float

    @property
    def noise_directions(self) -> int:
        """How many singular directions are at or under the floor."""
        return len(self.everything) - len(self.singular_values)

    def describe(self, rank: int) -> dict[str, Any]:
        """Return the diagnostics of an expert of whom `rank` directions are kept."""
        return {
            "norm": float(self.everything.norm()),
            "stable_rank": stable_rank(self.singular_values),
            "effective_rank": effective_rank(self.singular_values),
            "kept_rank": min(rank, len(self.singular_values)),
            "kept_energy": kept_energy(self.singular_values, rank),
            "noise_floor": self.floor,
            "noise_directions": self.noise_directions,
        }


@dataclass(frozen=True)
class TaskSpectrum(Spectrum):
    """One expert's task matrix, without its weight, λ or boost: what sweeps over those reuse.

    Attributes:
        decomposition: of the whole task matrix.
    """

    decomposition: Decomposition


@dataclass(frozen=True)
class Rounding:
    """What is known of the rounding of the stored weights, from which noise floors follow.

    Attributes:
        unit_roundoff: that of the coarsest dtype in which base and experts are stored.
        base_rms: root mean square of the base's entries; 0 where there is no base.
        factor: the parameter `noise_floor`.
    """

    unit_roundoff: float
    base_rms: float
    factor: float

    @classmethod
    def of(
        cls, base: Float[Tensor, "m n"] | None, *, unit_roundoff: float, factor: float
    ) -> Rounding:
        """Return the rounding of weights like those of the base."""
        rms = 0.0 if base is None else float(torch.linalg.vector_norm(base)) / base.numel() ** 0.5
        return cls(unit_roundoff, rms, factor)

    def times(self, size: float) -> Rounding:
        """Return that of a sum of task matrices: of weights w, ‖w‖ times that of one."""
        return Rounding(self.unit_roundoff, self.base_rms, self.factor * size)

    def spectrum(self, matrix: Float[Tensor, "m n"]) -> TaskSpectrum:
        """Decompose a task matrix, and set its noise apart."""
        return self.separate(decompose(matrix), (matrix.shape[0], matrix.shape[1]))

    def separate(
        self, decomposition: Decomposition, shape: tuple[int, int], largest: float | None = None
    ) -> TaskSpectrum:
        """Set the noise of a decomposed matrix of this shape apart.

        `largest` is the largest singular value of the data that the matrix was computed from,
        where it is not its own.
        """
        found = self.values(decomposition.singular_values, shape, largest)
        return TaskSpectrum(found.everything, found.singular_values, found.floor, decomposition)

    def values(
        self, values: Float[Tensor, " p"], shape: tuple[int, int], largest: float | None = None
    ) -> Spectrum:
        """Set the noise of a matrix of this shape and these singular values apart."""
        if largest is None:
            largest = float(values[0]) if len(values) else 0.0
        floor = noise_floor(
            largest,
            shape,
            unit_roundoff=self.unit_roundoff,
            base_rms=self.base_rms,
            factor=self.factor,
        )
        return Spectrum(values, values[: int((values > floor).sum())], floor)


def task_spectra(
    task_vectors: Float[Tensor, "experts m n"],
    base: Float[Tensor, "m n"] | None,
    *,
    unit_roundoff: float,
    factor: float,
) -> list[TaskSpectrum]:
    """Return one spectrum an expert.

    The floor is taken of the task matrix before its weight: the weight scales signal and noise.
    """
    rounding = Rounding.of(base, unit_roundoff=unit_roundoff, factor=factor)
    shape = (task_vectors.shape[1], task_vectors.shape[2])
    return [rounding.separate(found, shape) for found in decompose_all(task_vectors)]
