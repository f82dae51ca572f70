"""Methods that weigh the checkpoints by what speech of their domains says of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.contract.catalogue.method import MethodParameters, Paper, Statistic


class CalibratedParameters(MethodParameters):
    """What all methods of the family have in common: averages, each by its own measure."""

    family = "calibrated"
    base = "unused"
    space = "weights"
    needs_calibration = True

    @property
    def normalizes_weights(self) -> bool:
        """Always."""
        return True


class Fisher(CalibratedParameters):
    """Fisher merging: every entry averaged by how much each checkpoint's transcripts need it."""

    name = "fisher"
    title = "Fisher-weighted averaging"
    paper = Paper(
        "Merging models with Fisher-weighted averaging",
        "Matena and Raffel",
        2022,
        "https://arxiv.org/abs/2111.09832",
    )
    summary = (
        "Averages every entry, each checkpoint by its weight times its Fisher information: the "
        "mean squared gradient of the log-likelihood of its domain's transcripts."
    )

    labels: Literal["references", "sampled"] = Field(
        "references",
        description="Whose tokens' gradients are squared: those of the `references`, or tokens "
        "`sampled` from the model after the reference's earlier tokens.",
    )
    normalize: bool = Field(
        True,
        description="Divide each checkpoint's Fisher information by its norm over the whole model.",
    )
    floor: float = Field(
        1e-6,
        gt=0.0,
        description="Fisher information below this counts as this: what no checkpoint needs is "
        "averaged.",
    )

    @property
    def statistic(self) -> Statistic:
        """As `labels` says."""
        return "squared_gradients" if self.labels == "references" else "sampled_squared_gradients"


class RegMean(CalibratedParameters):
    """RegMean: linear layers whose outputs are nearest to the checkpoints' on their domains."""

    name = "regmean"
    title = "Regression mean (RegMean)"
    paper = Paper(
        "Dataless knowledge fusion by merging weights of language models",
        "Jin et al.",
        2023,
        "https://arxiv.org/abs/2212.09849",
    )
    summary = (
        "Gives each linear layer the weight whose outputs differ least, in squares, from each "
        "checkpoint's outputs on its own domain. Other tensors are averaged."
    )

    alpha: float = Field(
        0.9,
        ge=0.0,
        le=1.0,
        description="α, the factor of the products of different inputs of a layer: 1 is the plain "
        "regression, 0 averages each input's weights by its mean square.",
    )

    @property
    def statistic(self) -> Statistic:
        """Every linear layer's inputs."""
        return "input_grams"

    @property
    def by_rows(self) -> bool:
        """A row of the weight is one output's regression."""
        return True


METHODS: tuple[type[MethodParameters], ...] = (Fisher, RegMean)
