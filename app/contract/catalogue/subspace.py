"""Methods that combine the singular subspaces of the task vectors, matrix by matrix."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.contract.catalogue.method import MethodParameters, Paper

Orthogonalization = Literal["polar", "newton_schulz", "svd"]
EnergyMeasure = Literal["singular_values", "squared"]

_ORTHOGONALIZATION = (
    "How the experts' concatenated bases are made orthogonal: `polar` is the exact polar factor, "
    "`newton_schulz` five steps of a polynomial iteration that stays stable where experts share "
    "directions, `svd` the original algorithm, for comparison."
)


class SpectralParameters(MethodParameters):
    """What all methods of the family have in common."""

    family = "subspace"
    base = "required"
    space = "task_vectors"
    spectral = True

    scaling_coefficient: float = Field(
        1.0, description="λ, the factor of the merged task vector before it is added to the base."
    )
    noise_floor: float = Field(
        1.0,
        ge=0.0,
        description="Singular directions whose singular value is at or under the rounding noise "
        "of the stored weights, times this factor, are left out. 0 leaves out only what float32 "
        "arithmetic cannot resolve.",
    )


class TsvM(SpectralParameters):
    """TSV-M: the sum of the experts' dominant singular subspaces, made orthogonal."""

    name = "tsv_m"
    title = "Task singular vectors, merged (TSV-M)"
    paper = Paper(
        "Task singular vectors: reducing task interference in model merging",
        "Gargiulo et al.",
        2025,
        "https://arxiv.org/abs/2412.00081",
    )
    summary = (
        "Keeps each expert's dominant singular directions, makes those of different experts "
        "orthogonal to each other, and adds them up."
    )

    rank_fraction: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="Share of the full rank kept of each expert; one over the number of experts "
        "if not given.",
    )
    orthogonalization: Orthogonalization = Field("polar", description=_ORTHOGONALIZATION)


class BoostedTsvM(TsvM):
    """BoostedTSV-M: TSV-M with each expert's small singular values raised first."""

    name = "boosted_tsv_m"
    title = "Boosted task singular vectors (BoostedTSV-M)"
    paper = Paper(
        "Exploring the potential and limitations of model merging for multi-domain adaptation "
        "in ASR",
        "Carvalho, Teixeira, Rolland and Abad",
        2026,
        "https://arxiv.org/abs/2603.05354",
    )
    summary = (
        "TSV-M against rank collapse: each expert's singular values are raised to the one at "
        "which the spectrum's cumulative energy reaches beta, before the experts are combined."
    )

    orthogonalization: Orthogonalization = Field("newton_schulz", description=_ORTHOGONALIZATION)
    beta: float = Field(
        0.3,
        ge=0.0,
        le=1.0,
        description="β, the share of the cumulative energy whose singular value becomes the "
        "smallest: 1 leaves the spectrum as it is, 0 makes it flat.",
    )
    energy: EnergyMeasure = Field(
        "singular_values",
        description="What is accumulated: the singular values, or their squares.",
    )


METHODS: tuple[type[MethodParameters], ...] = (TsvM, BoostedTsvM)
