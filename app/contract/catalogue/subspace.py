"""Methods that combine the singular subspaces of the task vectors, matrix by matrix."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.contract.catalogue.method import MethodParameters, Paper, ScaledParameters

Orthogonalization = Literal["polar", "newton_schulz"]
EnergyMeasure = Literal["singular_values", "squared"]

_ORTHOGONALIZATION = (
    "How the experts' concatenated bases are orthogonalised: `polar` is the exact polar factor, "
    "`newton_schulz` five steps of a polynomial iteration that is stable where experts share "
    "directions."
)

_NO_TASK_LEFT_BEHIND = Paper(
    "No task left behind: isotropic model merging with common and task-specific subspaces",
    "Marczak et al.",
    2025,
    "https://arxiv.org/abs/2502.04959",
)


class SpectralParameters(ScaledParameters):
    """What all methods of the family have in common."""

    family = "subspace"
    base = "required"
    space = "task_vectors"
    spectral = True
    by_factors: ClassVar[bool] = False
    """Whether a task matrix of low rank is decomposed by its factors."""

    noise_floor: float = Field(
        1.0,
        ge=0.0,
        description="Singular values at or below this factor times the rounding noise of the "
        "stored weights are dropped. 0 drops only what float32 arithmetic cannot resolve.",
    )

    @property
    def readings(self) -> int:
        """Gram matrices of the task vectors, then of their bases, then the merge."""
        return 3

    def basis_copies(self, experts: int) -> float:
        """How many times the full rank the bases of all experts together have."""
        return 1.0


class TsvM(SpectralParameters):
    """TSV-M: the sum of the experts' dominant singular subspaces, orthogonalised."""

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
    by_factors = True

    rank_fraction: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="Share of the full rank kept for each expert. Default: one over the number of "
        "experts.",
    )
    orthogonalization: Orthogonalization = Field("polar", description=_ORTHOGONALIZATION)

    def basis_copies(self, experts: int) -> float:
        """One, or more if the rank kept of each is more than an even share."""
        return max(1.0, (self.rank_fraction or 0.0) * experts)


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
        "TSV-M with a remedy for rank collapse: before the experts are combined, each expert's "
        "singular values are raised to at least the one at which the spectrum's cumulative energy "
        "reaches beta."
    )

    orthogonalization: Orthogonalization = Field("newton_schulz", description=_ORTHOGONALIZATION)
    beta: float = Field(
        0.3,
        ge=0.0,
        le=1.0,
        description="β, the share of the cumulative energy at which the smallest kept singular "
        "value is read: 1 leaves the spectrum unchanged, 0 makes it flat.",
    )
    energy: EnergyMeasure = Field(
        "singular_values",
        description="The energy to accumulate: singular values, or their squares.",
    )


class IsoC(SpectralParameters):
    """Iso-C: the sum of the task vectors with all its singular values made equal."""

    name = "iso_c"
    title = "Isotropic merging in common subspace (Iso-C)"
    paper = _NO_TASK_LEFT_BEHIND
    summary = (
        "Adds up the task vectors and replaces each singular value of the sum by their mean, so "
        "that shared directions do not dominate those of single experts."
    )
    of_sum = True
    by_factors = True

    @property
    def readings(self) -> int:
        """The sum's Gram matrix, then the merge."""
        return 2


class IsoCts(SpectralParameters):
    """Iso-CTS: Iso-C with directions of each expert outside the common subspace."""

    name = "iso_cts"
    title = "Isotropic merging in common and task-specific subspaces (Iso-CTS)"
    paper = _NO_TASK_LEFT_BEHIND
    summary = (
        "Replaces the weakest directions of the summed task vectors by each expert's strongest "
        "directions outside the common subspace, and makes the spectrum flat."
    )

    common_space_fraction: float = Field(
        0.8,
        ge=0.0,
        le=1.0,
        description="Share of the full rank for the directions of the sum; the rest is divided "
        "equally among the experts, rounded down.",
    )
    orthogonalization: Orthogonalization = Field("polar", description=_ORTHOGONALIZATION)


class Knots(SpectralParameters):
    """KnOTS: TIES among the task matrices' coordinates in the space they span together."""

    name = "knots"
    title = "SVD to tie the knots (KnOTS-TIES)"
    paper = Paper(
        "Model merging with SVD to tie the knots",
        "Stoica et al.",
        2025,
        "https://arxiv.org/abs/2410.19735",
    )
    summary = (
        "Made for LoRA adapters: writes all experts' changes of a matrix in the singular vectors "
        "that they share, and trims, elects and averages there as TIES does among entries."
    )

    density: float = Field(
        0.2, gt=0.0, le=1.0, description="Share of each expert's coordinates that is kept."
    )
    normalize: bool = Field(
        True, description="Average the agreeing coordinates by weight; false adds them up."
    )

    @property
    def readings(self) -> int:
        """The Gram matrix of all experts side by side, then the merge."""
        return 2

    def basis_copies(self, experts: int) -> float:
        """The coordinates of every expert, in a space of up to all their ranks together."""
        return float(experts)


METHODS: tuple[type[MethodParameters], ...] = (IsoC, IsoCts, TsvM, BoostedTsvM, Knots)
