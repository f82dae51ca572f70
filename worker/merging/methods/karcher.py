"""Karcher mean: (Σ αᵢnᵢ)·u, u the Riemannian mean of the directions Wᵢ/nᵢ."""

from __future__ import annotations

import math

import numpy as np

from app.contract.catalogue.parameter_space import Karcher
from app.contract.errors import UndefinedMergeError
from worker.merging.combines import Linear
from worker.merging.linalg.sphere import Antipodal, cosines, karcher_mean, norms_of
from worker.merging.method import Steps, Subject, merges
from worker.merging.reductions import InnerProducts


@merges(Karcher)
def karcher(x: Subject, p: Karcher) -> Steps:
    """Return the mean as a combination of the experts; UndefinedMergeError if there is none."""
    gram = yield InnerProducts()
    norms = norms_of(gram)
    shares = np.array(x.weights) / math.fsum(x.weights)
    # Relative to the largest: a small tensor has a direction as good as a large one's.
    directed = np.flatnonzero(norms > p.tol * norms.max())
    if not len(directed):
        return Linear([0.0] * x.experts)
    chosen = shares[directed]
    if abs(float(chosen.sum())) <= 1e-9 * float(np.abs(chosen).sum()):
        raise UndefinedMergeError(
            f"{x.name}: the weights of the checkpoints in which it is not zero add up to 0, "
            "and karcher divides by their sum. Change the weights."
        )
    try:
        mean = karcher_mean(
            cosines(gram)[directed][:, directed],
            chosen / chosen.sum(),
            max_iter=p.max_iter,
            tol=p.tol,
        )
    except Antipodal:
        raise UndefinedMergeError(
            f"{x.name}: checkpoints point in opposite directions, between which the Karcher "
            "mean is not defined. Use a rule to give this tensor another method."
        ) from None
    x.notes.diagnostics.update(iterations=mean.iterations, tangent_norm=mean.tangent_norm)
    found = np.zeros_like(norms)
    found[directed] = mean.coefficients / norms[directed]
    return Linear((found * (shares * norms).sum()).tolist())
