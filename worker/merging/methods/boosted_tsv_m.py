"""BoostedTSV-M (Carvalho et al. 2026): TSV-M of boosted spectra, σ′ⱼ = max(σⱼ, σ_c)."""

from __future__ import annotations

import torch

from app.contract.catalogue.subspace import BoostedTsvM
from worker.merging.linalg.directions import kept_rank
from worker.merging.linalg.spectrum import boost, effective_rank, stable_rank
from worker.merging.method import Steps, Subject, merges
from worker.merging.reductions import Spectra, orthogonal_sum


@merges(BoostedTsvM)
def boosted_tsv_m(x: Subject, p: BoostedTsvM) -> Steps:
    """Return the sum of each expert's first k directions, boosted, made orthogonal."""
    found = yield Spectra()
    spectra = found.above(p.noise_floor)
    rank = kept_rank(x.shape, x.experts, p.rank_fraction)
    boosted = [boost(s.singular_values, p.beta, p.energy) for s in spectra]
    kept = [
        weight * values[: rank if weight else 0]
        for (values, _), weight in zip(boosted, x.weights, strict=True)
    ]
    directions, strengths = found.directions([len(values) for values in kept]), torch.cat(kept)
    before = torch.cat(
        [abs(w) * s.singular_values[:rank] for s, w in zip(spectra, x.weights, strict=True)]
    )
    x.notes.diagnostics.update(
        experts=[
            spectrum.describe(rank) | {"singular_value_at_beta": threshold}
            for spectrum, (_, threshold) in zip(spectra, boosted, strict=True)
        ],
        stable_rank_before=stable_rank(before),
        stable_rank_after=stable_rank(strengths.abs()),
        effective_rank_before=effective_rank(before),
        effective_rank_after=effective_rank(strengths.abs()),
    )
    return (yield from orthogonal_sum(x, directions, strengths, p.orthogonalization))
