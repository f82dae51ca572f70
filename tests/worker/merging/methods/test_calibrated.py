"""Fisher merging and RegMean, given what calibration sets say of the experts."""

import pytest
import torch

from worker.merging.method import Statistics


class Gathered(Statistics):
    """A tensor's statistics, in memory."""

    def __init__(self, tensors, norms=None):
        self._rows = torch.stack([tensor.float().flatten() for tensor in tensors])
        self._norms = norms or [1.0] * len(tensors)

    @property
    def norms(self):
        return tuple(self._norms)

    def read(self, start, stop):
        return self._rows[:, start:stop].clone()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grams_of(inputs):
    """Each expert's mean product of inputs; `inputs` are (experts, rows, columns)."""
    return [rows.double().mT @ rows.double() / len(rows) for rows in inputs]


def test_fisher_worked_by_hand(merge):
    models = torch.tensor([[1.0, 2.0, 3.0], [5.0, 4.0, 3.0]])
    information = Gathered(torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]]))
    merged = merge("fisher", models, statistics=information, normalize=False)
    # (3·1 + 1·5)/4, (2 + 4)/2, and the mean where nobody knows.
    torch.testing.assert_close(merged, torch.tensor([2.0, 3.0, 3.0]))


def test_fisher_divides_by_the_norms_and_multiplies_by_the_weights(merge):
    models = torch.tensor([[0.0], [1.0]])
    information = Gathered(torch.tensor([[8.0], [2.0]]), norms=[4.0, 2.0])
    # 8/4·1 against 2/2·6: six of eight parts.
    merged = merge("fisher", models, [1.0, 6.0], statistics=information)
    torch.testing.assert_close(merged, torch.tensor([0.75]))


def test_fisher_is_its_formula_in_float64(merge, merge_in_blocks):
    models, information = normal(4, 37, 11), normal(4, 37, 11, seed=1).square() * 1e-5
    norms, weights = [1.0, 2.0, 0.5, 3.0], [1.0, 0.5, 2.0, 0.0]
    scaled = information.double().clamp(min=1e-6)
    scaled = scaled * (torch.tensor(weights) / torch.tensor(norms))[:, None, None]
    expected = (scaled * models).sum(0) / scaled.sum(0)
    given = {"statistics": Gathered(information, norms)}
    torch.testing.assert_close(merge("fisher", models, weights, **given), expected.float())
    in_blocks = merge_in_blocks("fisher", models, 5, weights, **given)
    assert torch.equal(in_blocks, merge("fisher", models, weights, **given))


def test_fisher_maximises_the_joint_likelihood_of_gaussian_posteriors(merge):
    models, information = normal(3, 40), normal(3, 40, seed=2).square() + 0.1
    merged = merge("fisher", models, statistics=Gathered(information), normalize=False).double()
    slope = (information * (models - merged)).sum(0)
    assert slope.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_equal_statistics_give_the_mean(name, merge):
    models = normal(3, 12, 8)
    each = torch.ones(12, 8) if name == "fisher" else torch.eye(8)
    merged = merge(name, models, statistics=Gathered([each] * 3))
    torch.testing.assert_close(merged, models.mean(0))


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_a_single_expert_and_equal_experts_come_out_as_they_are(name, merge):
    one = normal(12, 8)
    each = normal(12, 8, seed=3).square() if name == "fisher" else grams_of(normal(1, 50, 8))[0]
    for count in (1, 3):
        found = Gathered([each * (n + 1) for n in range(count)])
        merged = merge(name, one.expand(count, 12, 8), statistics=found)
        torch.testing.assert_close(merged, one, rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_a_tensor_without_statistics_gets_the_weighted_mean(name, merge):
    models = normal(2, 9)
    expected = (3 * models[0] + models[1]) / 4
    torch.testing.assert_close(merge(name, models, [3.0, 1.0]), expected)


def test_regmean_worked_by_hand(merge):
    models = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    grams = [torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])]
    # (W₁G₁ + W₂G₂)·(G₁ + G₂)⁻¹ = [3 1 + 2]·[[4 1] [1 3]]⁻¹ = [6 9]/11
    merged = merge("regmean", models, statistics=Gathered(grams), alpha=1.0)
    torch.testing.assert_close(merged, torch.tensor([[6.0, 9.0]]) / 11, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_regmean_is_its_formula_in_float64(alpha, merge, merge_in_blocks):
    models, weights = normal(4, 37, 11).double(), [1.0, 0.5, 2.0, 0.0]
    grams = grams_of(normal(4, 60, 11, seed=4))
    total, inputs = 0.0, 0.0
    for model, gram, weight in zip(models, grams, weights, strict=True):
        reduced = weight * (alpha * gram + (1 - alpha) * gram.diag().diag())
        total, inputs = total + model @ reduced, inputs + reduced
    expected = (total @ torch.linalg.inv(inputs)).float()
    given = {"statistics": Gathered(grams), "alpha": alpha}
    merged = merge("regmean", models, weights, **given)
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)
    in_blocks = merge_in_blocks("regmean", models, 5, weights, **given)
    torch.testing.assert_close(in_blocks, merged, rtol=3e-7, atol=1e-7)


def test_no_other_weight_is_nearer_to_the_experts_outputs(merge):
    models, inputs = normal(3, 10, 8), normal(3, 30, 8, seed=5)

    def distance(weight):
        return sum(
            float(((weight - model).double() @ rows.double().mT).square().sum()) / len(rows)
            for model, rows in zip(models, inputs, strict=True)
        )

    merged = merge("regmean", models, statistics=Gathered(grams_of(inputs)), alpha=1.0)
    least = distance(merged)
    assert least < 0.99 * distance(models.mean(0))
    for seed in range(5):
        assert distance(merged + 1e-3 * normal(10, 8, seed=seed)) > least


def test_inputs_that_no_expert_saw_get_the_mean(merge):
    """Few tokens, and dead inputs: the regression is not determined there."""
    models, inputs = normal(2, 6, 40), normal(2, 5, 40, seed=6)
    inputs[:, :, 30:] = 0.0
    merged = merge("regmean", models, statistics=Gathered(grams_of(inputs)), alpha=1.0)
    mean = models.mean(0)
    torch.testing.assert_close(merged[:, 30:], mean[:, 30:])
    seen = torch.linalg.svd(inputs.flatten(0, 1).double())[2][:10]
    outside = torch.eye(40).double() - seen.mT @ seen
    moved = (merged - mean).double()
    assert (moved @ outside).norm() < 5e-3 * moved.norm()
