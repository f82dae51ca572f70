"""KnOTS-TIES: TIES in the space that the experts' task matrices span together."""

import math

import pytest
import torch

SHAPES = [(24, 24), (40, 12), (12, 40), (7, 5)]


def knots(tensors, weights, density, normalize=True):
    """The authors' merge of one matrix in float64: U is (outputs, rank), TIES is among ΣVᵢᵀ."""
    u, sigma, vh = torch.linalg.svd(torch.cat(list(tensors.double()), 1), full_matrices=False)
    kept = sigma > 1e-6 * sigma[0]
    u, aligned = u[:, kept], sigma[kept, None] * vh[kept]
    parts = torch.stack(aligned.tensor_split(len(tensors), 1))
    count = parts[0].numel()
    number = max(1, math.floor(density * count))
    for part in parts:
        cut = part.abs().flatten().sort(descending=True).values[number - 1]
        part[part.abs() < cut * (1 - 1e-9)] = 0
    weighted = torch.tensor(weights).double()[:, None, None]
    sign = torch.where((weighted * parts).sum(0) >= 0, 1.0, -1.0)
    agrees = weighted * parts * sign > 0
    total = (weighted * parts * agrees).sum(0)
    share = (weighted * agrees).sum(0)
    return u @ (torch.where(share != 0, total / share, 0.0) if normalize else total)


@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_it_is_its_formula_in_float64(shape, density, normalize, merge, random_tensors):
    tensors, weights = random_tensors(3, shape), [1.0, 0.5, 2.0]
    expected = knots(tensors, weights, density, normalize)
    merged = merge("knots", tensors, weights, density=density, normalize=normalize)
    assert torch.dist(merged.double(), expected) < 1e-4 * expected.norm()


def test_worked_by_hand(merge):
    # In the basis (3, 4)/5, (−4, 3)/5 of the outputs, rows of coordinates: orthogonal side by side.
    basis = torch.tensor([[3.0, -4.0], [4.0, 3.0]]) / 5
    first = torch.tensor([[5.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
    second = torch.tensor([[3.0, 2.0, 0.0], [0.0, 0.0, -3.0]])
    merged = merge("knots", torch.stack([basis @ first, basis @ second]), density=1.0)
    # (5 + 3)/2; of −1 and 2, and of 1 and −3, the larger wins.
    expected = basis @ torch.tensor([[4.0, 2.0, 0.0], [0.0, 0.0, -3.0]])
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_in_another_basis_are_merged_alike_there(shape, merge, random_tensors):
    """TIES depends on the basis that the outputs happen to be written in; KnOTS finds its own."""
    tensors = random_tensors(3, shape)
    turn, _ = torch.linalg.qr(torch.randn(shape[0], shape[0], generator=torch.manual_seed(1)))
    aligned = merge("knots", turn @ tensors, density=0.5)
    expected = turn @ merge("knots", tensors, density=0.5)
    assert torch.dist(aligned, expected) < 1e-4 * expected.norm()
    plain = merge("ties", turn @ tensors, density=0.5)
    assert torch.dist(plain, turn @ merge("ties", tensors, density=0.5)) > 0.1 * plain.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_one_expert_of_which_all_is_kept_is_itself(shape, merge, random_tensors):
    tensors = random_tensors(1, shape)
    merged = merge("knots", tensors, density=1.0)
    assert torch.dist(merged, tensors[0]) < 1e-5 * merged.norm()


def test_what_trimming_did_is_in_the_diagnostics(run, random_tensors):
    found = run("knots", random_tensors(3, (40, 12)), density=0.25).diagnostics
    assert found["directions"] == 36
    assert found["kept_of_each"] == 36 * 12 // 4
    assert len(found["thresholds"]) == 3
