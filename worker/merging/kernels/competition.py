"""The competition scores of PCB-Merging, and the mean that they weigh."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels.library import FLOAT, INT, LONG, POINTER, address, floats, function

_ROWS = (POINTER, LONG, LONG)
_scores = function("competition_scores", None, *_ROWS, POINTER, POINTER, INT, POINTER)
_mean = function(
    "competition_mean", None, *_ROWS, POINTER, POINTER, INT, POINTER, POINTER, FLOAT, POINTER
)


def competition_scores(
    tensors: Float[Tensor, "experts n"],
    lows: Sequence[float],
    highs: Sequence[float],
    linear: bool,
    scores: Float[Tensor, "experts n"],
) -> None:
    """Write each expert's scores; 0 where all its sizes are equal, never a negative zero.

    Sizes are clipped between lows[i] and highs[i]; `linear` says that tanh of any product is the
    product, to float32 rounding.
    """
    _scores(address(tensors), *tensors.shape, floats(lows), floats(highs), linear, address(scores))


def competition_mean(
    tensors: Float[Tensor, "experts n"],
    lows: Sequence[float],
    highs: Sequence[float],
    linear: bool,
    bottoms: Sequence[float],
    tops: Sequence[float],
    least_scale: float,
    result: Float[Tensor, " n"],
) -> None:
    """Write Σ sign(dᵢ)Aᵢ·scaleᵢ / max(Σ scaleᵢ, least_scale).

    scaleᵢ goes from 0 at a score of bottoms[i] to 1 at tops[i].
    """
    _mean(
        address(tensors), *tensors.shape, floats(lows), floats(highs), linear,
        floats(bottoms), floats(tops), least_scale, address(result),
    )  # fmt: skip
