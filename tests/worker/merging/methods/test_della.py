"""DELLA: changes are dropped by the rank of their magnitude, and elected as in TIES."""

import pytest
import torch

from app.contract.catalogue import parse_parameters
from app.contract.errors import InvalidRequestError
from worker.merging.linalg.draws import uniform

WEIGHTS = [1.0, -0.5, 2.0]
EVERYTHING = {"density": 1.0, "epsilon": 0.0}


def vectors(experts, shape, seed=0):
    return torch.randn(experts, *shape, generator=torch.Generator().manual_seed(seed))


def magprune(changes, density, epsilon, draws):
    """Algorithm 1 of the paper for one row, entry by entry in float64."""
    n, order = len(changes), sorted(changes.abs().tolist())
    kept = []
    for change, draw in zip(changes.tolist(), draws.tolist(), strict=True):
        chance = density - epsilon + 2 * epsilon * order.index(abs(change)) / (n - 1)
        kept.append(change / chance if draw < chance else 0.0)
    return torch.tensor(kept, dtype=torch.float64)


def della(tensors, weights, density, epsilon):
    rows = tensors.double().flatten(2) if tensors.ndim > 2 else tensors.double()[:, None]
    pruned = []
    for expert, matrix in enumerate(rows):
        draws = uniform(hash(expert), 0, matrix.numel()).view(matrix.shape)
        pairs = zip(matrix, draws, strict=True)
        pruned.append(torch.stack([magprune(row, density, epsilon, of) for row, of in pairs]))
    weights = torch.tensor(weights).double()[:, None, None]
    weighted = weights * torch.stack(pruned)
    elected = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agree = weighted.sign() == elected
    divisor = (weights * agree).sum(0)
    mean = (weighted * agree).sum(0) / torch.where(divisor == 0, 1.0, divisor)
    return torch.where(divisor == 0, 0.0, mean).view(tensors.shape[1:])


@pytest.mark.parametrize("shape", [(23, 9), (40,), (6, 5, 3)])
@pytest.mark.parametrize("window", [(0.5, 0.15), (0.2, 0.19), (0.7, 0.3), (0.4, 0.0)])
def test_it_agrees_with_float64(merge, shape, window):
    tensors, (density, epsilon) = vectors(3, shape), window
    result = merge("della", tensors, WEIGHTS, density=density, epsilon=epsilon)
    expected = della(tensors, WEIGHTS, density, epsilon)
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-7)


def test_a_case_worked_by_hand(merge):
    # Of two rows of three: chances 0.2, 0.5 and 0.8 in the order of the magnitudes in each row;
    # equal magnitudes rank by position.
    tensors = torch.tensor([[[-20.0, 8.0, 5.0], [1.0, 1.0, -1.0]]])
    scaled = torch.tensor([[-25.0, 16.0, 25.0], [5.0, 2.0, -1.25]])
    seen = torch.zeros(2, 3)
    for draw in range(60):
        result = merge(
            "della", tensors, density=0.5, epsilon=0.3, seed=lambda _, draw=draw: 7 * draw + 1
        )
        assert torch.equal(result[result != 0], scaled[result != 0])
        seen += result != 0
    assert (seen > 0).all()


def test_everything_kept_is_ties_without_trimming(merge):
    tensors = vectors(3, (9, 7))
    expected = merge("ties", tensors, WEIGHTS, density=1.0)
    assert torch.equal(merge("della", tensors, WEIGHTS, **EVERYTHING), expected)
    total = merge("ties", tensors, WEIGHTS, density=1.0, normalize=False)
    assert torch.equal(merge("della", tensors, WEIGHTS, normalize=False, **EVERYTHING), total)


def test_large_changes_are_kept_more_often_and_the_density_is_met(run):
    tensors = vectors(1, (100, 80))
    found = run("della", tensors, density=0.4, epsilon=0.3)
    order = tensors[0].abs().argsort(1)
    kept = (found.tensor != 0).float().gather(1, order)
    assert found.counts["kept"] == int(kept.sum())
    assert float(kept.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(kept[:, :20].mean()) == pytest.approx(0.172, abs=0.03)
    assert float(kept[:, -20:].mean()) == pytest.approx(0.628, abs=0.03)


def test_the_expectation_of_what_is_kept_is_the_task_vector(merge):
    tensors, total = vectors(1, (9, 7)), torch.zeros(9, 7)
    for draw in range(400):
        total += merge("della", tensors, seed=lambda _, draw=draw: 1000 + draw)
    assert torch.dist(total / 400, tensors[0]) < 0.1 * tensors[0].norm()


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("shape", [(23, 5), (23,), (23, 2, 3)])
def test_blocks_that_begin_anywhere_draw_the_same(merge, merge_in_blocks, shape, rows):
    tensors = vectors(2, shape)
    assert torch.equal(merge_in_blocks("della", tensors, rows), merge("della", tensors))
    stretches = merge_in_blocks("della", tensors, rows, stretch=8)
    assert torch.equal(stretches, merge("della", tensors))


@pytest.mark.parametrize("window", [{"density": 0.1}, {"density": 0.9}, {"epsilon": 0.5}])
def test_a_window_outside_zero_and_one_is_refused_by_name(window):
    with pytest.raises(InvalidRequestError, match=r"density - epsilon .* density 0\.") as refused:
        parse_parameters("della", window)
    assert refused.value.problems[0].param == "parameters.epsilon"
