"""Methods that combine task vectors (expert − base) entry by entry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from app.contract.catalogue.method import MethodParameters, Paper, ScaledParameters

Scope = Literal["tensor", "model"]


class TaskVectorParameters(ScaledParameters):
    """What all methods of the family have in common."""

    family = "task_vector"
    base = "required"
    space = "task_vectors"


class TaskArithmetic(TaskVectorParameters):
    """Task arithmetic: the base plus the scaled sum of the task vectors."""

    name = "task_arithmetic"
    title = "Task arithmetic"
    paper = Paper(
        "Editing models with task arithmetic",
        "Ilharco et al.",
        2023,
        "https://arxiv.org/abs/2212.04089",
    )
    summary = "Adds the experts' task vectors, each by its weight, to the base."

    normalize: bool = Field(
        False, description="Divide the sum of the task vectors by the sum of the weights."
    )

    @property
    def normalizes_weights(self) -> bool:
        """As `normalize` says."""
        return self.normalize


class Ties(TaskVectorParameters):
    """TIES: trim small changes, elect a sign, average those that agree with it."""

    name = "ties"
    title = "TIES-Merging"
    paper = Paper(
        "TIES-Merging: resolving interference when merging models",
        "Yadav et al.",
        2023,
        "https://arxiv.org/abs/2306.01708",
    )
    summary = (
        "Keeps each expert's largest changes, elects a sign for every entry, and averages the "
        "changes with that sign."
    )

    density: float = Field(
        0.2, gt=0.0, le=1.0, description="Share of each expert's changes that is kept."
    )
    normalize: bool = Field(
        True, description="Average the agreeing changes by weight; false adds them up."
    )
    scope: Scope = Field(
        "tensor",
        description="Where each expert's largest changes are selected: in each `tensor`, or across "
        "all tensors of the `model` that the method merges.",
    )

    @property
    def readings(self) -> int:
        """Two for the thresholds, unless everything is kept."""
        return 1 if self.density == 1.0 else 3

    @property
    def whole_model(self) -> bool:
        """As `scope` says."""
        return self.scope == "model"


class Pcb(TaskVectorParameters):
    """PCB-Merging: every change scaled by how it competes within and between the experts."""

    name = "pcb"
    title = "Parameter competition balancing (PCB-Merging)"
    paper = Paper(
        "Parameter competition balancing for model merging",
        "Du et al.",
        2024,
        "https://arxiv.org/abs/2410.02396",
    )
    summary = (
        "Scores every change by its magnitude and its agreement with the other experts, drops low "
        "scores, and averages the rest by score."
    )
    uses_weights = False

    ratio: float = Field(
        0.1, gt=0.0, le=1.0, description="Share of each expert's changes that is kept."
    )
    scope: Scope = Field(
        "tensor",
        description="Where magnitudes and scores are ranked: in each `tensor`, or across all "
        "tensors of the `model` that the method merges.",
    )

    @property
    def readings(self) -> int:
        """Two for the quantiles of the sizes, two for those of the scores."""
        return 5

    @property
    def whole_model(self) -> bool:
        """As `scope` says."""
        return self.scope == "model"


class Sce(TaskVectorParameters):
    """SCE: select where the experts differ, weigh each by its energy, erase minority signs."""

    name = "sce"
    title = "Select, calculate, erase (SCE)"
    paper = Paper(
        "FuseChat: knowledge fusion of chat models",
        "Wan et al.",
        2024,
        "https://arxiv.org/abs/2408.07990",
    )
    summary = (
        "Selects the entries in which the experts vary most, weighs each expert by the squares of "
        "its changes, and averages the changes with the majority's sign."
    )
    uses_weights = False

    select_topk: float = Field(
        1.0, gt=0.0, le=1.0, description="Share of the differing entries that is selected."
    )

    @property
    def readings(self) -> int:
        """One for the weights; before it two for the selection, unless all is selected."""
        return 2 if self.select_topk == 1.0 else 4


class Breadcrumbs(TaskVectorParameters):
    """Model Breadcrumbs: task arithmetic without the largest and the smallest changes."""

    name = "breadcrumbs"
    title = "Model Breadcrumbs"
    paper = Paper(
        "Model Breadcrumbs: scaling multi-task model merging with sparse masks",
        "Davari and Belilovsky",
        2023,
        "https://arxiv.org/abs/2312.06795",
    )
    summary = "Adds the task vectors without their largest and smallest changes."

    density: float = Field(
        0.9, gt=0.0, le=1.0, description="Share of each expert's changes that is kept."
    )
    gamma: float = Field(
        0.01, ge=0.0, lt=1.0, description="Share of the largest changes that is dropped."
    )
    normalize: bool = Field(
        False, description="Divide the sum of the task vectors by the sum of the weights."
    )

    @property
    def readings(self) -> int:
        """Two for the thresholds, unless everything is kept."""
        return 1 if self.density == 1.0 and self.gamma == 0.0 else 3

    @property
    def normalizes_weights(self) -> bool:
        """As `normalize` says."""
        return self.normalize


class Dare(TaskVectorParameters):
    """DARE: drop changes at random, and scale up the rest to compensate."""

    name = "dare"
    draws = True
    title = "Drop and rescale (DARE)"
    paper = Paper(
        "Language models are super Mario: absorbing abilities from homologous models as a free "
        "lunch",
        "Yu et al.",
        2024,
        "https://arxiv.org/abs/2311.03099",
    )
    summary = (
        "Drops a random share of each task vector's changes, divides the rest by the kept share, "
        "and adds up. The recipe's seed determines the selection."
    )

    density: float = Field(0.5, gt=0.0, le=1.0, description="Probability of keeping a change.")
    normalize: bool = Field(
        False, description="Divide the sum of the task vectors by the sum of the weights."
    )

    @property
    def normalizes_weights(self) -> bool:
        """As `normalize` says."""
        return self.normalize


class Della(TaskVectorParameters):
    """DELLA: drop small changes more often than large ones, then elect a sign as TIES does."""

    name = "della"
    draws = True
    title = "Drop and rescale by magnitude (DELLA)"
    paper = Paper(
        "DELLA-Merging: reducing interference in model merging through magnitude-based sampling",
        "Deep, Bhardwaj and Poria",
        2024,
        "https://arxiv.org/abs/2406.11617",
    )
    summary = (
        "Drops each expert's changes at random, the small ones of a row more often, divides the "
        "rest by the probability of keeping them, elects a sign for every entry, and averages the "
        "changes with that sign. The recipe's seed determines the selection."
    )

    density: float = Field(0.5, gt=0.0, le=1.0, description="Mean probability of keeping a change.")
    epsilon: float = Field(
        0.15,
        ge=0.0,
        lt=1.0,
        validate_default=True,
        description="The probability rises from density - epsilon for the smallest change of a "
        "row to density + epsilon for the largest; both must be between 0 and 1.",
    )
    normalize: bool = Field(
        True, description="Average the agreeing changes by weight; false adds them up."
    )

    @field_validator("epsilon")
    @classmethod
    def _check_window(cls, epsilon: float, given: ValidationInfo) -> float:
        density = given.data.get("density")
        if density is not None and not (epsilon < density and density + epsilon <= 1.0):
            raise PydanticCustomError(
                "window",
                "density - epsilon must be greater than 0 and density + epsilon at most 1, with "
                "density {density}",
                {"density": density},
            )
        return epsilon

    @property
    def readings_of_vectors(self) -> int:
        """A vector's ranks first: rows are ranked in their block."""
        return 2

    @property
    def by_rows(self) -> bool:
        """Changes are ranked within a row."""
        return True


class Ram(TaskVectorParameters):
    """RAM: each entry's mean over the experts that changed it."""

    name = "ram"
    title = "Reinforced agent merging (RAM)"
    paper = Paper(
        "Behavior knowledge merge in reinforced agentic models",
        "Yuan et al.",
        2026,
        "https://arxiv.org/abs/2601.13572",
    )
    summary = (
        "Keeps what one expert alone changed in full, and averages what several changed: for "
        "sparse changes, which a plain mean dilutes."
    )
    uses_weights = False

    epsilon: float = Field(
        1e-5, ge=0.0, description="Changes of this magnitude or less count as none."
    )


METHODS: tuple[type[MethodParameters], ...] = (
    TaskArithmetic,
    Ties,
    Pcb,
    Sce,
    Breadcrumbs,
    Dare,
    Della,
    Ram,
)
