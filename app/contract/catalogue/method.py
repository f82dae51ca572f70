"""What every merge method says of itself, and the frozen class its parameters derive from."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

Family = Literal["parameter_space", "task_vector", "subspace", "calibrated"]
BaseUse = Literal["required", "optional", "unused"]
Space = Literal["weights", "task_vectors"]
Statistic = Literal["squared_gradients", "sampled_squared_gradients", "input_grams"]
"""What a worker can gather of an expert on its calibration sets (worker/calibration/)."""


class Paper(NamedTuple):
    """Where a method was published."""

    title: str
    authors: str
    year: int
    url: str


class MethodParameters(BaseModel):
    """The parameters of one method (its fields), and the method's traits (its class variables).

    A method is this class and `worker/merging/methods/{name}.py`; planning and engine read the
    traits and never ask for a method by name. All switches default to the plain case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[Family]
    paper: ClassVar[Paper]
    summary: ClassVar[str]
    base: ClassVar[BaseUse]
    """`required`: refused without one; `optional`: used if there is one."""
    space: ClassVar[Space]
    """What a method gets and returns: weights, or task vectors (the result not yet scaled).

    If the base is optional and there is none, task vectors are the weights themselves.
    """
    uses_weights: ClassVar[bool] = True
    min_experts: ClassVar[int] = 1
    max_experts: ClassVar[int | None] = None
    spectral: ClassVar[bool] = False
    """Works on matrices, which it sees upright, by whole rows; tensors that have not exactly two
    dimensions get the mean of the task vectors."""
    of_sum: ClassVar[bool] = False
    """Needs nothing of the task vectors but their weighted sum and inner products: no expert's
    matrix is in memory."""
    draws: ClassVar[bool] = False
    """Draws random numbers from the recipe's seed."""
    needs_calibration: ClassVar[bool] = False
    """Needs speech of each expert's domain, on which the worker gathers its `statistic`."""
    counts_base: ClassVar[bool] = False
    """The base, if there is one, is the first of the merged models: `min_experts` counts it."""

    @property
    def normalizes_weights(self) -> bool:
        """Whether the result is divided by the sum of the weights, which may then not be 0.

        Such a result is an average: of inputs equal to the bit it is a copy.
        """
        return False

    @property
    def statistic(self) -> Statistic | None:
        """What it reads of the calibration sets; None for a method that needs none."""
        return None

    @property
    def readings(self) -> int:
        """How often the method looks at a matrix: once for each `yield`, and for the merge."""
        return 1

    @property
    def readings_of_vectors(self) -> int:
        """The same for a vector, whose blocks are never whole rows."""
        return self.readings

    @property
    def by_rows(self) -> bool:
        """Whether a block must be whole rows (slices of the first axis), in the tensor's shape."""
        return False

    @property
    def whole_model(self) -> bool:
        """Whether reductions go over all tensors that the method merges, not over each alone."""
        return False


class ScaledParameters(MethodParameters):
    """The parameters of a method on task vectors: the merged one is added to the base λ times.

    λ may grow or shrink with a layer's depth, as LiNeS (Wang et al. 2024) does it for any method:
    λ = first + (last − first)·(l − 1)/(L − 1) in layer l of L.
    """

    scaling_coefficient: float = Field(
        1.0,
        description="λ, the factor of the merged task vector when it is added to the base.",
    )
    scaling_coefficient_last: float | None = Field(
        None,
        description="λ in the last layer of each stack (encoder, decoder); layers between have "
        "values between, evenly spaced, and the first layer and tensors outside of layers "
        "`scaling_coefficient` (LiNeS). Default: the same λ everywhere.",
    )

    @property
    def scales(self) -> tuple[float, float]:
        """λ in the first and in the last layer."""
        last = self.scaling_coefficient_last
        return self.scaling_coefficient, self.scaling_coefficient if last is None else last
