"""Tall tensors, merged by row blocks from their Gram matrices, are as when merged whole."""

import math

import pytest
import torch

from app.contract.catalogue import CATALOGUE, parse_parameters
from app.planning.cost import cut_of

SPECTRAL = [name for name, method in CATALOGUE.items() if method.spectral]
ORTHOGONALIZING = [n for n in SPECTRAL if "orthogonalization" in CATALOGUE[n].model_fields]
SHAPE = (640, 40)


@pytest.fixture(params=SPECTRAL)
def name(request):
    return request.param


@pytest.fixture
def by_rows(merge_in_blocks):
    """A function that merges by blocks of 64 rows, in stretches of 192."""
    return lambda name, tensors, weights=None, **parameters: merge_in_blocks(
        name, tensors, 64, weights, stretch=192, **parameters
    )


def close(result, expected, tolerance=1e-5):
    return torch.dist(result, expected) <= tolerance * expected.norm()


@pytest.mark.parametrize("experts", [1, 3, 20])
def test_rows_are_those_of_the_whole(name, merge, by_rows, random_tensors, experts):
    tensors = random_tensors(experts, SHAPE)
    weights = [1.0, -0.5, 2.0, *[0.75] * 17][:experts]
    assert close(by_rows(name, tensors, weights), merge(name, tensors, weights))


@pytest.mark.parametrize("how", ["polar", "newton_schulz"])
@pytest.mark.parametrize("name", ORTHOGONALIZING)
def test_every_way_to_orthogonalise(name, merge, by_rows, random_tensors, how):
    tensors = random_tensors(3, SHAPE)
    options = {"orthogonalization": how}
    assert close(by_rows(name, tensors, **options), merge(name, tensors, **options))


@pytest.mark.parametrize("rank_fraction", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("name", ["tsv_m", "boosted_tsv_m"])
def test_every_rank(name, merge, by_rows, random_tensors, rank_fraction):
    tensors = random_tensors(3, SHAPE)
    options = {"rank_fraction": rank_fraction, "orthogonalization": "newton_schulz"}
    assert close(by_rows(name, tensors, **options), merge(name, tensors, **options))


def test_spectra_that_fall_far_are_multiplied_in_float64(name, merge, by_rows, random_tensors):
    tensors = random_tensors(2, SHAPE, smallest=3e-4)
    assert close(by_rows(name, tensors), merge(name, tensors), 1e-4)


def test_low_rank_zero_and_equal_experts(name, merge, by_rows):
    generator = torch.Generator().manual_seed(5)
    low = torch.randn(640, 3, generator=generator) @ torch.randn(3, 40, generator=generator)
    other = torch.randn(640, 2, generator=generator) @ torch.randn(2, 40, generator=generator)
    for experts in ([low, other], [low, torch.zeros(SHAPE)], [low, low], [torch.zeros(SHAPE)] * 2):
        tensors = torch.stack(experts)
        result, expected = by_rows(name, tensors), merge(name, tensors)
        assert result.isfinite().all()
        assert close(result, expected, 1e-4)


def test_rows_that_cancel_are_what_float64_makes_of_them(name, by_rows):
    # The experts share nearly everything: what is outside the common space is small.
    generator = torch.Generator().manual_seed(6)
    shared = torch.randn(SHAPE, generator=generator)
    tensors = shared + 1e-3 * torch.randn(3, *SHAPE, generator=generator)
    changed = tensors * (1 + 1e-7 * torch.randn(tensors.shape, generator=generator))
    options = {"orthogonalization": "newton_schulz"} if name in ORTHOGONALIZING else {}
    assert close(by_rows(name, changed, **options), by_rows(name, tensors, **options), 1e-3)


def test_diagnostics_are_those_of_the_whole(name, run, random_tensors):
    tensors = random_tensors(3, SHAPE)
    whole, rows = (run(name, tensors, **cut).diagnostics for cut in ({}, {"rows": 64}))
    assert rows.keys() == whole.keys()
    for key, value in whole.items():
        if isinstance(value, float):
            assert rows[key] == pytest.approx(value, rel=1e-4, abs=1e-9), key
    for one, other in zip(whole["experts"], rows["experts"], strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("shape", [(1500, 384), (384, 51865)])
def test_only_tall_and_large_matrices_are_cut(name, shape):
    parameters = parse_parameters(name, {})
    assert cut_of(shape, 3, parameters).piece == math.prod(shape)
    assert cut_of((51865, 384), 3, parameters).piece == 384
