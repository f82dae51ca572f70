"""Methods that combine task vectors (expert − base) entry by entry."""

from __future__ import annotations

from pydantic import Field

from app.contract.catalogue.method import MethodParameters, Paper


class TaskArithmetic(MethodParameters):
    """Task arithmetic: the base plus the scaled sum of the task vectors."""

    name = "task_arithmetic"
    title = "Task arithmetic"
    family = "task_vector"
    paper = Paper(
        "Editing models with task arithmetic",
        "Ilharco et al.",
        2023,
        "https://arxiv.org/abs/2212.04089",
    )
    summary = "Adds the experts' task vectors, each by its weight, to the base."
    base = "required"
    space = "task_vectors"
    blockwise = True

    scaling_coefficient: float = Field(
        1.0, description="λ, the factor of the merged task vector before it is added to the base."
    )
    normalize: bool = Field(
        False, description="Divide the sum of the task vectors by the sum of the weights."
    )

    @property
    def normalizes_weights(self) -> bool:
        """As `normalize` says."""
        return self.normalize


METHODS: tuple[type[MethodParameters], ...] = (TaskArithmetic,)
