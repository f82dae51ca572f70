"""TSV-M (Gargiulo et al. 2025): W₀ + λ·orth(Û)·diag(Σ̂)·orth(V̂)ᵀ."""

from __future__ import annotations

import torch

from app.contract.catalogue.subspace import TsvM
from worker.merging.linalg.directions import kept_rank
from worker.merging.linalg.spectrum import effective_rank, stable_rank
from worker.merging.method import Steps, Subject, merges
from worker.merging.reductions import Spectra, orthogonal_sum


@merges(TsvM)
def tsv_m(x: Subject, p: TsvM) -> Steps:
    """Return the sum of each expert's first k singular directions, made orthogonal."""
    found = yield Spectra()
    spectra = found.above(p.noise_floor)
    rank = kept_rank(x.shape, x.experts, p.rank_fraction)
    kept = [
        weight * spectrum.singular_values[: rank if weight else 0]
        for spectrum, weight in zip(spectra, x.weights, strict=True)
    ]
    directions, strengths = found.directions([len(values) for values in kept]), torch.cat(kept)
    x.notes.diagnostics.update(
        experts=[spectrum.describe(rank) for spectrum in spectra],
        stable_rank=stable_rank(strengths.abs()),
        effective_rank=effective_rank(strengths.abs()),
    )
    return (yield from orthogonal_sum(x, directions, strengths, p.orthogonalization))
