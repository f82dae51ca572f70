"""TSV-M, BoostedTSV-M and Iso-CTS as published: by float32 SVDs, for contrast."""

from __future__ import annotations

import torch

from app.contract.catalogue import CATALOGUE
from worker.merging.linalg.directions import kept_rank
from worker.merging.linalg.spectrum import boost
from worker.merging.methods.iso_cts import places

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def original(method: str, tensors: torch.Tensor) -> torch.Tensor:
    """Return the merged task matrix of float32 task matrices, with the default parameters."""
    parts = _common_and_own(tensors) if method == "iso_cts" else _dominant(method, tensors)
    strengths = torch.cat([values for _, values, _ in parts])
    if method == "iso_cts":
        strengths = strengths.mean().expand_as(strengths)
    left = _procrustes(torch.cat([u for u, _, _ in parts], 1))
    right = _procrustes(torch.cat([vh for _, _, vh in parts]))
    return left @ torch.diag(strengths) @ right


def _dominant(method: str, tensors: torch.Tensor) -> list[Triple]:
    rank = kept_rank(tensors.shape[1:], len(tensors), None)
    beta = CATALOGUE[method].model_fields["beta"].default if method == "boosted_tsv_m" else 1.0
    found = []
    for matrix in tensors:
        u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
        found.append((u[:, :rank], boost(values, beta)[0][:rank], vh[:rank]))
    return found


def _common_and_own(tensors: torch.Tensor) -> list[Triple]:
    fraction = CATALOGUE["iso_cts"].model_fields["common_space_fraction"].default
    common, own = places(min(tensors.shape[1:]), len(tensors), fraction)
    u, values, vh = torch.linalg.svd(tensors.sum(0), full_matrices=False)
    shared = u[:, :common]
    found = [(shared, values[:common], vh[:common])]
    for matrix in tensors:
        left, rest, right = torch.linalg.svd(
            matrix - shared @ (shared.T @ matrix), full_matrices=False
        )
        found.append((left[:, :own], rest[:own], right[:own]))
    return found


def _procrustes(matrix: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh
