"""Methods that work on the weights themselves, or on the angles between them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.contract.catalogue.method import MethodParameters, Paper


class Soup(MethodParameters):
    """Model soup: the weighted average of the checkpoints."""

    name = "soup"
    title = "Model soup"
    family = "parameter_space"
    paper = Paper(
        "Model soups: averaging weights of multiple fine-tuned models improves accuracy without "
        "increasing inference time",
        "Wortsman et al.",
        2022,
        "https://arxiv.org/abs/2203.05482",
    )
    summary = "Averages the checkpoints, each by its weight. A base, if given, is not averaged in."
    base = "unused"
    space = "weights"

    normalize: bool = Field(True, description="Divide the weighted sum by the sum of the weights.")

    @property
    def normalizes_weights(self) -> bool:
        """As `normalize` says."""
        return self.normalize


class ModelStock(MethodParameters):
    """Model Stock: the average, moved towards the base the more the experts disagree."""

    name = "model_stock"
    title = "Model Stock"
    family = "parameter_space"
    paper = Paper(
        "Model Stock: all we need is just a few fine-tuned models",
        "Jang, Yun and Han",
        2024,
        "https://arxiv.org/abs/2403.19522",
    )
    summary = (
        "Interpolates between the base and the average of the experts: the smaller the angles "
        "between task vectors, the closer to the average."
    )
    base = "required"
    space = "task_vectors"
    uses_weights = False
    min_experts = 2

    filter_wise: bool = Field(
        False, description="Compute angles for each row (output channel), not for the whole tensor."
    )

    @property
    def readings(self) -> int:
        """Rows are whole in their block; the tensor's angles need a pass of their own."""
        return 1 if self.filter_wise else 2

    @property
    def by_rows(self) -> bool:
        """As `filter_wise` says."""
        return self.filter_wise


class Karcher(MethodParameters):
    """Karcher mean: the Riemannian average of the directions, with the average norm."""

    name = "karcher"
    title = "Karcher mean"
    family = "parameter_space"
    paper = Paper(
        "Riemannian center of mass and mollifier smoothing",
        "Karcher",
        1977,
        "https://doi.org/10.1002/cpa.3160300502",
    )
    summary = (
        "Averages the checkpoints' directions on the sphere, where the sum of squared angles is "
        "least, and gives the result their average norm."
    )
    base = "unused"
    space = "weights"

    max_iter: int = Field(10, ge=1, le=1000, description="Largest number of iterations.")
    tol: float = Field(
        1e-5,
        gt=0.0,
        lt=1.0,
        description="Step, in radians, at which iteration stops; also the norm, relative to the "
        "largest, below which a checkpoint's tensor is ignored as having no direction.",
    )

    @property
    def readings(self) -> int:
        """The angles first."""
        return 2

    @property
    def normalizes_weights(self) -> bool:
        """Always."""
        return True


class MultiSlerp(MethodParameters):
    """Multi-SLERP: the average direction with the average norm."""

    name = "multi_slerp"
    title = "Multi-SLERP"
    family = "parameter_space"
    paper = Paper(
        "Multi-SLERP: wow, what a cool idea",
        "Goddard",
        2025,
        "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    )
    summary = (
        "Averages the directions of the checkpoints, or of their task vectors if there is a base, "
        "and gives the result their average norm."
    )
    base = "optional"
    space = "task_vectors"

    @property
    def readings(self) -> int:
        """The angles first."""
        return 2

    @property
    def normalizes_weights(self) -> bool:
        """Always."""
        return True


class Slerp(MethodParameters):
    """SLERP: interpolation between two models along the sphere."""

    name = "slerp"
    title = "Spherical interpolation (SLERP)"
    family = "parameter_space"
    paper = Paper(
        "Animating rotation with quaternion curves",
        "Shoemake",
        1985,
        "https://doi.org/10.1145/325165.325242",
    )
    summary = (
        "Interpolates between two models along the sphere. The first model is the base, or the "
        "first checkpoint if there is no base."
    )
    base = "optional"
    space = "weights"
    uses_weights = False
    min_experts = 2
    max_experts = 2
    counts_base = True

    t: float = Field(
        0.5, ge=0.0, le=1.0, description="Interpolation factor: 0 is the first model, 1 the second."
    )

    @property
    def readings(self) -> int:
        """The angle first."""
        return 2


class NuSlerp(MethodParameters):
    """NuSLERP: weighted SLERP, on task vectors if there is a base, of tensors or of rows."""

    name = "nuslerp"
    title = "NuSLERP"
    family = "parameter_space"
    paper = Paper(
        "Arcee's MergeKit: a toolkit for merging large language models",
        "Goddard et al.",
        2024,
        "https://arxiv.org/abs/2403.13257",
    )
    summary = (
        "Interpolates two checkpoints, or their task vectors if there is a base, along the sphere, "
        "each by its weight."
    )
    base = "optional"
    space = "task_vectors"
    min_experts = 2
    max_experts = 2

    axis: Literal[0, -1] | None = Field(
        None,
        description="Interpolate each vector along this axis (0 or -1, the last) by its own angle. "
        "Default: the whole tensor is one vector.",
    )

    @property
    def readings(self) -> int:
        """Vectors along the last axis are whole in their block; others need a pass."""
        return 1 if self.axis == -1 else 2

    @property
    def readings_of_vectors(self) -> int:
        """A vector's angle first."""
        return 2

    @property
    def by_rows(self) -> bool:
        """Where vectors do not span the tensor, blocks must keep its axes."""
        return self.axis is not None

    @property
    def normalizes_weights(self) -> bool:
        """Always."""
        return True


METHODS: tuple[type[MethodParameters], ...] = (
    Soup,
    ModelStock,
    Karcher,
    MultiSlerp,
    Slerp,
    NuSlerp,
)
