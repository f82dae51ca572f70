"""RAM: what one expert alone changed is kept in full."""

import pytest
import torch


def test_worked_by_hand(merge):
    changes = [[2e-5, 3.0, -4.0, 0.0, 1.0], [0.0, 1.0, 1e-5, 0.0, -1.0], [0.0, 1e-6, 0.0, 0.0, 3.0]]
    expected = torch.tensor([2e-5, 2.0, -4.0, 0.0, 1.0])
    assert torch.equal(merge("ram", changes), expected)


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.5])
def test_it_is_its_formula_in_float64(epsilon, merge):
    tensors = torch.randn(4, 30, 20, generator=torch.Generator().manual_seed(1))
    tensors[torch.rand(4, 30, 20, generator=torch.Generator().manual_seed(2)) < 0.7] = 0
    merged = merge("ram", tensors, epsilon=epsilon)
    for place in [(0, 0), (3, 7), (29, 19), (12, 4)]:
        found = [float(one[place]) for one in tensors.double() if abs(one[place]) > epsilon]
        expected = sum(found) / len(found) if found else 0.0
        assert float(merged[place]) == pytest.approx(expected, rel=1e-6)


def test_sparse_changes_that_do_not_meet_are_not_diluted(merge):
    apart = torch.zeros(3, 30)
    for number in range(3):
        apart[number, number::3] = torch.randn(10)
    assert torch.equal(merge("ram", apart), apart.sum(0))
    assert torch.allclose(merge("task_arithmetic", apart, normalize=True), apart.sum(0) / 3)
