"""Model Stock, Karcher, Multi-SLERP, SLERP and NuSLERP: directions, angles and norms."""

import math

import pytest
import torch

from app.contract.errors import UndefinedMergeError

SHAPES = [(1, 40), (24, 24), (200, 30), (50,), (6, 5, 3)]


def family(experts, shape, spread=1.0, seed=0):
    """Experts of one base: they share a part, and differ by `spread` of it."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(shape, generator=generator)
    return shared + spread * torch.randn(experts, *shape, generator=generator)


def close(result, expected, bound=4e-7):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return float(torch.dist(result.double(), expected)) <= bound * float(expected.norm())


def model_stock(d):
    pairs = [(i, j) for i in range(len(d)) for j in range(i)]
    cosine = sum((d[i] * d[j]).sum() / (d[i].norm() * d[j].norm()) for i, j in pairs) / len(pairs)
    return len(d) * cosine / (1 + (len(d) - 1) * cosine) * d.mean(0)


def karcher(tensors, weights, steps=10):
    norms = torch.stack([x.norm() for x in tensors])
    units = [x / n for x, n in zip(tensors, norms, strict=True)]
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    u = sum(a * x for a, x in zip(shares, units, strict=True))
    u = u / u.norm()
    for _ in range(steps):
        tangent = torch.zeros_like(u)
        for a, x in zip(shares, units, strict=True):
            angle = 2 * torch.asin((u - x).norm() / 2)
            tangent += (
                a * (angle / torch.sin(angle) if angle > 0 else 1.0) * (x - (u * x).sum() * u)
            )
        length = tangent.norm()
        if length < 1e-5:
            break
        u = torch.cos(length) * u + torch.sin(length) * tangent / length
        u = u / u.norm()
    return (shares * norms).sum() * u


def multi_slerp(v, weights):
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    m = sum(w * x / x.norm() for w, x in zip(shares, v, strict=True))
    return m / m.norm() * sum(w * x.norm() for w, x in zip(shares, v, strict=True))


def slerp(a, b, t, dims=None):
    dims = tuple(range(a.ndim)) if dims is None else dims
    lengths = [torch.linalg.vector_norm(x, dim=dims, keepdim=True) for x in (a, b)]
    angle = torch.acos((a * b).sum(dims, keepdim=True) / lengths[0] / lengths[1])
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


class TestModelStock:
    def test_a_case_worked_by_hand(self, merge):
        # Orthogonal task vectors: c = 0, t = 0, the base. At 60°: c = 1/2, t = 2/3.
        orthogonal = [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]]
        assert not merge("model_stock", orthogonal).any()
        height = math.sqrt(3) / 2
        tilted = [[[1.0, 0.0], [0.0, 0.0]], [[0.5, height], [0.0, 0.0]]]
        assert close(merge("model_stock", tilted), [[0.5, height / 3], [0.0, 0.0]])

    @pytest.mark.parametrize("experts", [2, 3, 20])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_agrees_with_float64(self, merge, experts, shape):
        tensors = family(experts, shape)
        assert close(merge("model_stock", tensors), model_stock(tensors.double()))

    @pytest.mark.parametrize("shape", [(30, 20), (8, 5, 3)])
    def test_filter_wise_takes_every_row_alone(self, merge, shape):
        tensors = family(3, shape)
        result = merge("model_stock", tensors, filter_wise=True)
        for row in range(shape[0]):
            assert close(result[row], model_stock(tensors[:, row].double()))

    def test_small_task_vectors_are_not_drawn_to_the_base(self, merge):
        tensors = family(3, (20, 10))
        expected = merge("model_stock", tensors)
        assert close(merge("model_stock", 1e-12 * tensors), 1e-12 * expected.double())

    def test_the_smaller_the_angle_the_nearer_to_the_average(self, merge):
        # The paper's t: 0 where the experts are orthogonal, 1 where they are one.
        shared, *own = torch.eye(5)
        ratios = []
        for size in (0.0, 0.1, 1.0, 10.0):
            tensors = torch.stack([size * shared + x for x in own])
            ratios.append(float(merge("model_stock", tensors)[1] / tensors.mean(0)[1]))
        assert ratios[0] == 0.0
        assert ratios == sorted(ratios)
        assert 0.97 < ratios[-1] < 1.0

    def test_equal_experts_are_given_back_and_a_zero_one_counts_as_unrelated(self, run):
        one = torch.randn(10, 6)
        found = run("model_stock", torch.stack([one, one, torch.zeros(10, 6)]))
        assert found.diagnostics["mean_cosine"] == pytest.approx(1 / 3)
        assert found.diagnostics["t"] == pytest.approx(3 / 5)
        assert close(found.tensor, 3 / 5 * 2 / 3 * one.double())
        assert not found.warnings

    @pytest.mark.parametrize("filter_wise", [False, True])
    def test_t_outside_the_unit_interval_is_a_warning_naming_the_tensor(self, run, filter_wise):
        generator = torch.Generator().manual_seed(0)
        one, noise = torch.randn(2, 10, 6, generator=generator)
        pair = torch.stack([one, -one + 0.5 * noise])
        found = run("model_stock", pair, filter_wise=filter_wise)
        assert found.tensor.isfinite().all()
        ((_, message),) = found.warnings
        assert "model.encoder.layers.0.fc1.weight" in message

    def test_opposite_experts_give_the_base(self, merge):
        one = torch.randn(10, 6)
        assert not merge("model_stock", torch.stack([one, -one])).any()


class TestKarcher:
    def test_a_case_worked_by_hand(self, merge):
        # Between two directions the mean bisects the angle; its norm is the mean norm.
        tensors = [[[3.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]
        half = math.sqrt(2)
        assert close(merge("karcher", tensors), [[half, half], [0.0, 0.0]])
        angle = math.pi / 8  # a weight of 3 to 1 leaves it a quarter of the way
        expected = [[2.5 * math.cos(angle), 2.5 * math.sin(angle)], [0.0, 0.0]]
        weighted = merge("karcher", tensors, [3.0, 1.0], max_iter=100, tol=1e-9)
        assert close(weighted, expected)

    @pytest.mark.parametrize("experts", [2, 3, 20])
    @pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_agrees_with_float64(self, merge, experts, shape, spread):
        tensors = family(experts, shape, spread)
        weights = [1.0 + 0.1 * k for k in range(experts)]
        assert close(merge("karcher", tensors, weights), karcher(tensors.double(), weights))

    def test_the_logarithms_at_the_mean_add_up_to_zero(self, merge):
        tensors = family(5, (30, 20)).double()
        u = merge("karcher", tensors, max_iter=200, tol=1e-12).double()
        u /= u.norm()
        logarithms = []
        for x in tensors:
            x = x / x.norm()
            angle = torch.acos((u * x).sum())
            logarithms.append(angle / torch.sin(angle) * (x - (u * x).sum() * u))
        assert sum(logarithms).norm() < 1e-6

    def test_opposite_directions_are_refused_naming_the_tensor(self, merge):
        one = torch.randn(10, 6)
        with pytest.raises(UndefinedMergeError, match=r"fc1\.weight.*opposite"):
            merge("karcher", torch.stack([one, -one]))

    def test_a_zero_tensor_has_no_direction_but_a_norm(self, merge):
        one = torch.randn(10, 6)
        result = merge("karcher", torch.stack([one, torch.zeros(10, 6)]))
        assert close(result, one.double() / 2)

    def test_diagnostics_tell_how_the_mean_was_reached(self, run):
        found = run("karcher", family(3, (30, 20))).diagnostics
        assert found["tangent_norm"] < 1e-5
        assert 0 < found["iterations"] <= 10


class TestMultiSlerp:
    def test_a_case_worked_by_hand(self, merge):
        tensors = [[[3.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]
        half = math.sqrt(2)
        assert close(merge("multi_slerp", tensors), [[half, half], [0.0, 0.0]])
        expected = 2.5 / math.sqrt(10) * torch.tensor([[3.0, 1.0], [0.0, 0.0]]).double()
        assert close(merge("multi_slerp", tensors, [3.0, 1.0]), expected)

    @pytest.mark.parametrize("experts", [1, 2, 3, 20])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_agrees_with_float64(self, merge, experts, shape):
        tensors = family(experts, shape)
        weights = [1.0 + 0.1 * k for k in range(experts)]
        assert close(merge("multi_slerp", tensors, weights), multi_slerp(tensors.double(), weights))

    def test_the_norm_is_the_mean_norm(self, merge):
        tensors = torch.randn(4, 30, 20) * torch.tensor([0.1, 1.0, 5.0, 9.0]).view(4, 1, 1)
        mean = tensors.double().flatten(1).norm(dim=1).mean()
        assert float(merge("multi_slerp", tensors).double().norm()) == pytest.approx(float(mean))

    def test_a_zero_expert_adds_no_direction(self, merge):
        one = torch.randn(10, 6)
        result = merge("multi_slerp", torch.stack([one, torch.zeros(10, 6)]))
        assert close(result, one.double() / 2)

    def test_two_opposite_experts_are_averaged_and_more_refused(self, merge):
        one, other = torch.randn(2, 10, 6)
        result = merge("multi_slerp", torch.stack([one, -3 * one]))
        assert close(result, -one.double(), 1e-6)
        cancelling = torch.stack([one, -one, other, -other])
        with pytest.raises(UndefinedMergeError, match=r"fc1\.weight.*cancel"):
            merge("multi_slerp", cancelling)


class TestSlerp:
    def test_a_case_worked_by_hand(self, merge):
        tensors = [[[3.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]
        half = math.sqrt(0.5)
        assert close(merge("slerp", tensors), [[3 * half, half], [0.0, 0.0]])

    @pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_agrees_with_float64(self, merge, shape, t):
        tensors = family(2, shape)
        expected = slerp(*tensors.double(), t)
        assert close(merge("slerp", tensors, t=t), expected)

    @pytest.mark.parametrize("name", ["slerp", "nuslerp"])
    def test_the_ends_are_the_models(self, merge, name):
        tensors = family(2, (9, 7))
        ends = [{"t": 0.0}, {"t": 1.0}] if name == "slerp" else [{}, {}]
        weights = [None, None] if name == "slerp" else [[1.0, 0.0], [0.0, 1.0]]
        for tensor, options, weight in zip(tensors, ends, weights, strict=True):
            assert torch.equal(merge(name, tensors, weight, **options), tensor)

    def test_unit_vectors_stay_on_the_sphere(self, merge):
        tensors = torch.nn.functional.normalize(torch.randn(2, 50), dim=1)
        for t in (0.1, 0.5, 0.8):
            assert float(merge("slerp", tensors, t=t).norm()) == pytest.approx(1.0, abs=1e-6)

    def test_directions_that_are_close_are_joined_by_a_line(self, merge):
        tensors = family(2, (9, 7), spread=1e-3)
        expected = 0.7 * tensors[0].double() + 0.3 * tensors[1].double()
        assert close(merge("slerp", tensors, t=0.3), expected)


class TestNuSlerp:
    def test_weights_tell_how_far_to_go(self, merge):
        tensors = [[[3.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]
        third = math.pi / 6
        expected = [[3 * math.cos(third), math.sin(third)], [0.0, 0.0]]
        assert close(merge("nuslerp", tensors, [2.0, 1.0]), expected)

    @pytest.mark.parametrize("axis", [None, 0, -1])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_agrees_with_float64(self, merge, shape, axis):
        tensors = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
        if (shape, axis) == ((1, 40), 0):  # vectors of one entry lie on a line
            expected = 0.25 * tensors[0].double() + 0.75 * tensors[1].double()
        else:
            expected = slerp(*tensors.double(), 0.75, axis)
        assert close(merge("nuslerp", tensors, [1.0, 3.0], axis=axis), expected, 1e-6)

    @pytest.mark.parametrize("axis", [0, -1])
    def test_blocks_of_rows_are_the_whole(self, merge, merge_in_blocks, axis):
        tensors = torch.randn(2, 37, 11)
        whole = merge("nuslerp", tensors, axis=axis)
        blocks = merge_in_blocks("nuslerp", tensors, 5, axis=axis, stretch=15)
        torch.testing.assert_close(blocks, whole, rtol=3e-7, atol=0)
