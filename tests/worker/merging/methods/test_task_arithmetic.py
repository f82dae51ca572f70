"""Task arithmetic: the weighted sum of the task vectors."""

import pytest
import torch


def test_a_case_worked_by_hand(merge):
    tensors = [[[1.0, 2.0], [3.0, 4.0]], [[0.5, -2.0], [-1.0, 0.0]]]
    assert torch.equal(merge("task_arithmetic", tensors), torch.tensor([[1.5, 0.0], [2.0, 4.0]]))
    weighted = merge("task_arithmetic", tensors, [1.0, 3.0], normalize=True)
    assert torch.equal(weighted, torch.tensor([[0.625, -1.0], [0.0, 1.0]]))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("experts", [1, 3, 20])
def test_it_agrees_with_float64(merge, experts, normalize):
    generator = torch.Generator().manual_seed(1)
    tensors = torch.randn(experts, 50, 30, generator=generator)
    weights = torch.rand(experts, generator=generator, dtype=torch.float64) + 0.1
    expected = torch.einsum("i,ijk->jk", weights, tensors.double())
    expected /= weights.sum() if normalize else 1.0
    result = merge("task_arithmetic", tensors, weights.tolist(), normalize=normalize)
    assert torch.dist(result.double(), expected) < 4e-7 * expected.norm()


def test_one_expert_gives_its_own_task_vector(merge):
    tensors = torch.randn(1, 8, 5)
    assert torch.equal(merge("task_arithmetic", tensors), tensors[0])


def test_a_task_is_forgotten_by_a_negative_weight(merge):
    tensors = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(1))
    both = merge("task_arithmetic", tensors)
    assert torch.allclose(
        both - merge("task_arithmetic", tensors, [1.0, 0.0]), tensors[1], atol=1e-6
    )
    assert torch.equal(merge("task_arithmetic", tensors[:1], [-1.0]), -tensors[0])
