"""Methods that work on the weights themselves."""

from __future__ import annotations

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
    blockwise = True

    normalize: bool = Field(True, description="Divide the weighted sum by the sum of the weights.")

    @property
    def normalizes_weights(self) -> bool:
        """As `normalize` says."""
        return self.normalize


METHODS: tuple[type[MethodParameters], ...] = (Soup,)
