"""Karcher mean: (Σ αᵢnᵢ)·u, u the Riemannian mean of the directions Wᵢ/nᵢ."""

from __future__ import annotations

import math

import numpy as np

from app.contract.catalogue.parameter_space import Karcher
from app.contract.errors import UndefinedMergeError
from worker.merging.gram import GramSurvey
from worker.merging.interface import About
from worker.merging.linalg.sphere import Antipodal, karcher_mean


def survey(
    about: About, parameters: Karcher, finished: GramSurvey | None
) -> GramSurvey | list[float]:
    """Return the coefficients of the experts in the mean; UndefinedMergeError if there is none."""
    if finished is None:
        return GramSurvey(about.experts)
    finished.describe(about)
    norms = finished.norms
    shares = np.array(about.weights) / math.fsum(about.weights)
    # Beside the largest: a small tensor has a direction as good as a large one's.
    directed = np.flatnonzero(norms > parameters.tol * norms.max())
    if not len(directed):
        return [0.0] * about.experts
    chosen = shares[directed]
    if abs(float(chosen.sum())) <= 1e-9 * float(np.abs(chosen).sum()):
        raise UndefinedMergeError(
            f"{about.name}: the weights of the checkpoints in which it is not zero add up to 0, "
            "and karcher divides by their sum. Change the weights."
        )
    try:
        mean = karcher_mean(
            finished.cosines[directed][:, directed],
            chosen / chosen.sum(),
            max_iter=parameters.max_iter,
            tol=parameters.tol,
        )
    except Antipodal:
        raise UndefinedMergeError(
            f"{about.name}: checkpoints point in opposite directions, between which the Karcher "
            "mean is not defined. Use a rule to give this tensor another method."
        ) from None
    about.diagnostics.update(iterations=mean.iterations, tangent_norm=mean.tangent_norm)
    found = np.zeros_like(norms)
    found[directed] = mean.coefficients / norms[directed]
    listed: list[float] = (found * (shares * norms).sum()).tolist()
    return listed


def coefficients(
    weights: tuple[float, ...], parameters: Karcher, known: list[float]
) -> list[float]:
    """Return the experts' coefficients, of the tensors as they are: what the survey found."""
    return known
