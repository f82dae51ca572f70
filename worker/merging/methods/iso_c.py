"""Iso-C (Marczak et al. 2025): W₀ + λ·mean(σ)·U·Vᵀ, with U·diag(σ)·Vᵀ = Σ wᵢdᵢ."""

from __future__ import annotations

import math

from app.contract.catalogue.subspace import IsoC
from worker.merging.combines import OfSum
from worker.merging.linalg.orthogonal import isometry
from worker.merging.linalg.sphere import norms_of
from worker.merging.method import Steps, Subject, merges
from worker.merging.reductions import InnerProducts, SumSpectrum


@merges(IsoC)
def iso_c(x: Subject, p: IsoC) -> Steps:
    """Give every singular value of the sum above its noise floor the mean of all min(m, n).

    Those at or under the floor count as 0, and stay 0.
    """
    spectra, products = yield SumSpectrum(), InnerProducts()
    # The rounding of a sum with weights w is ‖w‖ times that of one task matrix.
    (spectrum,) = spectra.above(p.noise_floor * math.hypot(*x.weights))
    rank, full = len(spectrum.singular_values), min(x.shape)
    mean = float(spectrum.singular_values.sum()) / full
    x.notes.diagnostics.update(
        experts=[{"norm": norm} for norm in norms_of(products).tolist()],
        sum=spectrum.describe(full),
        mean_singular_value=mean,
        stable_rank_after=float(rank),
        effective_rank_after=float(rank),
    )
    return OfSum(mean * isometry(spectrum, rank))
