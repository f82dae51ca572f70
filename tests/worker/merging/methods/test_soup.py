"""Model soup: the weighted average."""

import pytest
import torch


def test_a_case_worked_by_hand(merge):
    tensors = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, -2.0], [-1.0, 0.0]]]
    assert torch.equal(merge("soup", tensors), torch.tensor([[3.0, 0.0], [1.0, 2.0]]))
    weighted = merge("soup", tensors, [3.0, 1.0])
    assert torch.equal(weighted, torch.tensor([[2.0, 1.0], [2.0, 3.0]]))
    summed = merge("soup", tensors, [1.0, -1.0], normalize=False)
    assert torch.equal(summed, torch.tensor([[-4.0, 4.0], [4.0, 4.0]]))


@pytest.mark.parametrize("experts", [1, 2, 7, 20])
def test_it_agrees_with_float64(merge, experts):
    generator = torch.Generator().manual_seed(1)
    tensors = torch.randn(experts, 50, 30, generator=generator)
    weights = torch.rand(experts, generator=generator, dtype=torch.float64) + 0.1
    expected = torch.einsum("i,ijk->jk", weights / weights.sum(), tensors.double())
    result = merge("soup", tensors, weights.tolist())
    assert torch.dist(result.double(), expected) < 2e-7 * expected.norm()


@pytest.mark.parametrize("shape", [(31,), (5, 4, 3)])
def test_the_average_lies_between_the_checkpoints(merge, shape):
    tensors = torch.randn(5, *shape, generator=torch.Generator().manual_seed(2))
    result = merge("soup", tensors, [1.0, 2.0, 3.0, 0.5, 0.25])
    assert (result <= tensors.amax(0) + 1e-6).all()
    assert (result >= tensors.amin(0) - 1e-6).all()


def test_the_base_is_not_averaged_in(merge):
    tensors = torch.randn(2, 4, 4)
    assert torch.equal(merge("soup", tensors, base=torch.ones(4, 4)), merge("soup", tensors))
