"""Iso-CTS (Marczak et al. 2025): Iso-C in which each expert's own directions have a place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from app.contract.catalogue.subspace import IsoCts
from worker.merging.interface import About, MergeInputs
from worker.merging.linalg.orthogonal import complement
from worker.merging.linalg.outside import OutsideBases
from worker.merging.linalg.overlap import interference
from worker.merging.linalg.products import multiply
from worker.merging.linalg.subspaces import Bases, Rows, orthogonal_sum
from worker.merging.linalg.sums import weighted_sum
from worker.merging.linalg.svd import (
    Decomposition,
    decompose_all,
    decompose_gram,
    decompose_grams,
)
from worker.merging.linalg.task_spectra import Rounding, Spectrum, TaskSpectrum
from worker.merging.tall import BasisGram, CommonGrams


def survey(about: About, parameters: IsoCts, finished: CommonGrams | BasisGram | None) -> Any:
    """Return what makes the rows of a tall tensor's merge; None of one that is merged whole."""
    if not parameters.streams(about.shape):
        return None
    if finished is None:
        return CommonGrams()
    if isinstance(finished, BasisGram):
        return finished.finish(about, parameters)
    grams = finished
    return BasisGram(*grams.once(parameters, lambda: _keep_rows(about, grams, parameters)))


def merge(inputs: MergeInputs, parameters: IsoCts, rows: Rows | None) -> torch.Tensor:
    """Return mean(σ)·orth(Û)·orth(V̂)ᵀ: the common block and the experts' own; 2-D only.

    The common block holds the top c directions of Σ wᵢdᵢ, an expert's block the top k of what the
    left projection dᵢ − U_c·U_cᵀ·dᵢ leaves of it. The mean is taken over all c + N·k places, of
    which those whose direction is noise count as 0.
    """
    if rows is not None:
        return rows(inputs.tensors)
    bases, flat = _keep(inputs, parameters)
    inputs.diagnostics.update(interference(bases, flat))
    return orthogonal_sum(bases, flat, parameters.orthogonalization)


def places(full: int, experts: int, fraction: float) -> tuple[int, int]:
    """Return c and k: how many directions are common, and how many are each expert's own."""
    # A share such as 0.29 of 100 is 29 although its product in binary falls just short of it.
    outside = full - math.floor(full * fraction + 1e-9)
    own = round(outside / experts)
    return max(0, full - own * experts), own


def _keep(inputs: MergeInputs, parameters: IsoCts) -> tuple[Bases, torch.Tensor]:
    """Return the bases of a tensor in memory and their flat strengths, and describe them."""
    rounding = Rounding.of(
        inputs.base, unit_roundoff=inputs.unit_roundoff, factor=parameters.noise_floor
    )
    m, n = inputs.shape
    shared, own = places(min(m, n), len(inputs.tensors), parameters.common_space_fraction)
    bases = Bases((m, n), shared + own * len(inputs.tensors))
    total = weighted_sum(inputs.tensors, inputs.weights, normalize=False)
    spectrum = rounding.times(math.hypot(*inputs.weights)).spectrum(total)
    strengths = bases.add(spectrum.decomposition, spectrum.singular_values[:shared])
    bases.orthonormal = len(strengths)
    common = bases.u
    del total, spectrum
    experts = [rounding.values(d.singular_values, (m, n)) for d in decompose_all(inputs.tensors)]
    # Of a square or wide matrix what is outside has few dimensions: its coordinates are enough.
    space = complement(common) if m <= n else None
    rests = decompose_all(_outside(matrix, common, space) for matrix in inputs.tensors)

    def add(_: int, left: TaskSpectrum, kept: torch.Tensor) -> torch.Tensor:
        return bases.add(left.decomposition, kept, within=space)

    flat = _add_own(inputs, rounding, experts, rests, (shared, own), strengths, add)
    return bases, flat


def _outside(
    matrix: torch.Tensor, common: torch.Tensor, space: torch.Tensor | None
) -> torch.Tensor:
    """Return what the common directions leave of a task matrix, or its coordinates in a space."""
    if space is None:
        # U·(Uᵀ·d), never (U·Uᵀ)·d: of an embedding, U·Uᵀ has billions of entries.
        return torch.addmm(matrix, common, common.mT @ matrix, alpha=-1.0)
    return multiply(matrix.mT, space).mT


def _keep_rows(about: About, grams: CommonGrams, parameters: IsoCts) -> tuple[Bases, torch.Tensor]:
    """Return the bases of a tall tensor, as `_keep` does."""
    rounding, (m, n) = grams.rounding(parameters.noise_floor), about.shape
    shared, own = places(min(m, n), about.experts, parameters.common_space_fraction)
    bases = OutsideBases((m, n), shared + own * about.experts, about.weights)
    spectrum = rounding.times(math.hypot(*about.weights)).separate(
        decompose_gram(grams.sums["sum"]), (m, n)
    )
    strengths = bases.add_common(spectrum.decomposition, spectrum.singular_values[:shared])
    bases.orthonormal = len(strengths)
    squares = [grams.squares(number) for number in range(about.experts)]
    experts = [rounding.values(d.singular_values, (m, n)) for d in decompose_grams(squares)]
    inside = [bases.inside(grams.with_sum(number)) for number in range(about.experts)]
    rests = decompose_grams(map(bases.outside, squares, inside))

    def add(number: int, left: TaskSpectrum, kept: torch.Tensor) -> torch.Tensor:
        everything = experts[number].everything
        return bases.add_own(left.decomposition, inside[number], everything, kept)

    flat = _add_own(about, rounding, experts, rests, (shared, own), strengths, add)
    return bases, flat


def _add_own(
    tensor: About | MergeInputs,
    rounding: Rounding,
    experts: Sequence[Spectrum],
    rests: Iterable[Decomposition],
    counts: tuple[int, int],
    common: torch.Tensor,
    add: Callable[[int, TaskSpectrum, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Add each expert's own directions, of what is left of it, and return all flat strengths.

    `counts` are the places of the common directions and of each expert's own, `common` the
    strengths of the common ones; `add` adds directions of an expert and returns their strengths.
    """
    shared, own = counts
    strengths, described = [common], []
    for number, (expert, weight, rest) in enumerate(
        zip(experts, tensor.weights, rests, strict=True)
    ):
        shape = (tensor.shape[0], tensor.shape[1])
        left = rounding.separate(rest, shape, largest=_largest(expert))
        strengths.append(add(number, left, weight * left.singular_values[:own]))
        described.append(_describe(expert, left, own, len(strengths[-1])))
    return _flat(tensor, strengths, shared + own * len(described), described)


def _largest(spectrum: Spectrum) -> float:
    return float(spectrum.everything[0]) if len(spectrum.everything) else 0.0


def _describe(expert: Spectrum, left: Spectrum, own: int, kept: int) -> dict[str, Any]:
    before, after = (float(s.everything.square().sum()) for s in (expert, left))
    explained = min(max(1 - after / before, 0.0), 1.0) if before > 0 else 1.0
    return expert.describe(own) | {"kept_rank": kept, "energy_in_common_space": explained}


def _flat(
    tensor: About | MergeInputs,
    strengths: list[torch.Tensor],
    count: int,
    described: list[dict[str, Any]],
) -> torch.Tensor:
    """Return the mean strength of all places for those that are taken, with their signs."""
    every = torch.cat(strengths)
    mean = float(every.abs().sum()) / max(1, count)
    tensor.diagnostics.update(
        experts=described, common_rank=len(strengths[0]), mean_singular_value=mean
    )
    return mean * every.sign()
