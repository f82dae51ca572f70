"""Iso-C and Iso-CTS: flat spectra, in the common space and outside it."""

import math

import pytest
import torch

from worker.merging.methods.iso_cts import places

SHAPES = [(1, 1), (9, 1), (24, 24), (40, 12), (12, 40), (150, 150)]
WEIGHTS = [1.0, -0.5, 2.0, 0.75, 1.0, 1.0, 0.3]


def polar(matrix):
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def iso_c(tensors, weights):
    """The formula of methods.md in float64, as plainly as it is written there."""
    total = sum(w * d for w, d in zip(weights, tensors.double(), strict=False))
    u, sigma, vh = torch.linalg.svd(total, full_matrices=False)
    return sigma.mean() * u @ vh


def iso_cts(tensors, weights, fraction):
    weighted = [w * d for w, d in zip(weights, tensors.double(), strict=False)]
    p, n = min(tensors.shape[1:]), len(weighted)
    total = round((p - math.floor(fraction * p + 1e-9)) / n) * n
    c, k = max(0, p - total), total // n
    u, sigma, vh = torch.linalg.svd(sum(weighted), full_matrices=False)
    common = u[:, :c]
    us, sigmas, vs = [], [], []
    for d in weighted:
        left, values, right = torch.linalg.svd(d - common @ (common.T @ d), full_matrices=False)
        us.append(left[:, :k])
        sigmas.append(values[:k])
        vs.append(right[:k].T)
    concatenated = torch.cat([*us, common], 1), torch.cat([*vs, vh[:c].T], 1)
    mean = torch.cat([*sigmas, sigma[:c]]).mean()
    return mean * polar(concatenated[0]) @ polar(concatenated[1]).T


@pytest.mark.parametrize("experts", [1, 2, 4, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_iso_c_agrees_with_float64(merge, random_tensors, shape, experts):
    tensors = random_tensors(experts, shape)
    expected = iso_c(tensors, WEIGHTS)
    result = merge("iso_c", tensors, WEIGHTS[:experts])
    assert torch.dist(result.double(), expected) < 1e-4 * expected.norm()


@pytest.mark.parametrize("fraction", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("experts", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES[2:])
def test_iso_cts_agrees_with_float64(merge, random_tensors, shape, experts, fraction):
    tensors = random_tensors(experts, shape)
    expected = iso_cts(tensors, WEIGHTS[:experts], fraction)
    result = merge("iso_cts", tensors, WEIGHTS[:experts], common_space_fraction=fraction)
    assert torch.dist(result.double(), expected) < 1e-4 * expected.norm()


def test_cases_worked_by_hand(merge):
    # The sum is diag(3, 1): its mean singular value is 2.
    tensors = [[[2.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, -1.0]]]
    result = merge("iso_c", tensors)
    assert torch.allclose(result, torch.tensor([[2.0, 0.0], [0.0, -2.0]]))
    weighted = merge("iso_c", tensors, [0.0, 4.0])  # diag(4, −4)
    assert torch.allclose(weighted, torch.tensor([[4.0, 0.0], [0.0, -4.0]]))
    # One common direction, e1 of σ = 5; outside it the only expert has e2 of σ = 3.
    own = merge("iso_cts", [[[5.0, 0.0], [0.0, 3.0]]], common_space_fraction=0.5)
    assert torch.allclose(own, torch.tensor([[4.0, 0.0], [0.0, 4.0]]))


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
@pytest.mark.parametrize("shape", [(60, 40), (40, 200), (144, 144)])
def test_the_spectrum_is_flat(merge, random_tensors, name, shape):
    values = torch.linalg.svdvals(merge(name, random_tensors(4, shape)).double())
    assert torch.allclose(values, values.mean().expand_as(values), rtol=1e-4)


def test_iso_c_keeps_the_nuclear_norm(merge, random_tensors):
    tensors = random_tensors(3, (60, 40))
    result = merge("iso_c", tensors)
    before = torch.linalg.matrix_norm(tensors.double().sum(0), "nuc")
    assert torch.linalg.matrix_norm(result.double(), "nuc") == pytest.approx(
        float(before), rel=1e-5
    )


def test_the_experts_own_directions_are_outside_the_common_space(merge, random_tensors):
    tensors = random_tensors(4, (60, 40))
    common = torch.linalg.svd(tensors.double().sum(0)).U[:, :32]
    (u, v), (expected_u, _) = [
        torch.linalg.svd(m.double(), full_matrices=False)[::2]
        for m in (merge("iso_cts", tensors), merge("iso_c", tensors))
    ]
    # The common directions are in the result, although the polar factor may turn them.
    assert torch.linalg.matrix_norm(u.T @ common) ** 2 == pytest.approx(32, abs=1e-3)
    # Iso-C has no other directions than the sum's, Iso-CTS has.
    assert torch.linalg.matrix_norm(expected_u.T @ u) ** 2 < 39.5
    assert v.shape == (40, 40)


@pytest.mark.parametrize(
    ("full", "experts", "fraction", "expected"),
    [
        (384, 4, 0.8, (308, 19)),  # ⌊307.2⌋ = 307, 77 / 4 = 19.25
        (100, 1, 0.29, (29, 71)),
        (12, 8, 0.0, (0, 2)),  # 1.5 rounds to the even 2: sixteen places in twelve
        (10, 4, 0.0, (2, 2)),  # 2.5 rounds to the even 2
        (1, 4, 0.8, (1, 0)),
        (40, 4, 1.0, (40, 0)),
    ],
)
def test_places_are_shared_out_as_in_the_original(full, experts, fraction, expected):
    assert places(full, experts, fraction) == expected


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_of_the_stored_weights_gets_no_place(merge, name, dtype):
    generator = torch.Generator().manual_seed(8)
    base = (0.05 * torch.randn(200, 64, generator=generator)).to(dtype)
    updates = torch.randn(2, 200, 4, generator=generator)
    updates = 0.02 * updates @ torch.randn(2, 4, 64, generator=generator)
    stored = (base.float() + updates).to(dtype).float() - base.float()
    options = {"base": base.float(), "unit_roundoff": torch.finfo(dtype).eps / 2}
    exact = merge(name, updates, **options)
    result = merge(name, stored, **options)
    assert torch.dist(result, exact) < 0.05 * exact.norm()
    assert torch.linalg.matrix_rank(result.double(), rtol=1e-4) == 8


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
def test_experts_that_cancel_leave_nothing_common(merge, name, random_tensors):
    one = random_tensors(1, (200, 140))[0]
    result = merge(name, torch.stack([one, one]), [1.0, -1.0])
    assert result.isfinite().all()
    assert (name == "iso_cts") == bool(result.any())


@pytest.mark.parametrize("experts", [2, 20])
def test_equal_experts_add_nothing_outside_the_common_space(merge, random_tensors, experts):
    (one,) = random_tensors(1, (200, 140))
    result = merge("iso_cts", one.expand(experts, 200, 140))
    own = places(140, experts, 0.8)[1]
    assert torch.linalg.matrix_rank(result.double(), rtol=1e-4) == 140 - own * (experts - 1)


def test_diagnostics_tell_what_is_common(run, random_tensors):
    tensors = random_tensors(3, (60, 40))
    found = run("iso_cts", tensors).diagnostics
    assert found["common_rank"] == 31
    assert [expert["kept_rank"] for expert in found["experts"]] == [3, 3, 3]
    common = torch.linalg.svd(tensors.double().sum(0)).U[:, :31]
    for matrix, expert in zip(tensors.double(), found["experts"], strict=True):
        share = float((common.T @ matrix).square().sum() / matrix.square().sum())
        assert expert["energy_in_common_space"] == pytest.approx(share, abs=1e-5)
        assert expert["norm"] == pytest.approx(float(matrix.norm()))
        outside = torch.linalg.svdvals(matrix - common @ (common.T @ matrix)).square()
        assert expert["stable_rank"] == pytest.approx(float(outside.sum() / outside[0]))
        kept = float(outside[:3].sum() / outside.sum())
        assert expert["kept_energy"] == pytest.approx(kept)
    assert run("iso_c", tensors).diagnostics["sum"]["noise_directions"] == 0
