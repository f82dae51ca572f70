"""TIES, PCB, SCE, Breadcrumbs and DARE: which entries of the task vectors count, and how much."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SHAPES = [(1, 7), (24, 24), (150, 40), (333,), (6, 5, 3)]


def vectors(experts, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1e-3 * torch.randn(experts, *shape, generator=generator)


def top(values, count):
    """1 for the `count` largest magnitudes and all that are equal to the last of them."""
    sizes = values.abs()
    cut = sizes.flatten().sort(descending=True).values[count - 1] if count else math.inf
    return (sizes >= cut).to(values.dtype)


def ties(d, weights, density=0.2, normalize=True):
    kept = [x * top(x, max(1, math.floor(density * x.numel()))) for x in d]
    signs = torch.where(sum(w * x for w, x in zip(weights, kept, strict=True)) >= 0, 1.0, -1.0)
    total = torch.zeros_like(d[0])
    divisor = torch.zeros_like(d[0])
    for w, x in zip(weights, kept, strict=True):
        agrees = torch.sign(w * x) == signs
        total += torch.where(agrees, w * x, 0.0)
        divisor += torch.where(agrees, w, 0.0)
    if not normalize:
        return total
    return torch.where(divisor == 0, 0.0, total / torch.where(divisor == 0, 1.0, divisor))


def sce(d, select_topk=1.0):
    mask = torch.ones_like(d[0])
    if select_topk < 1:
        spread = d.var(0, unbiased=False)
        mask = top(spread, math.floor(select_topk * int((spread > 0).sum())))
    d = d * mask
    energies = torch.stack([x.square().mean() for x in d])
    shares = energies / energies.sum()
    signs = torch.where(d.sum(0) >= 0, 1.0, -1.0)
    total, divisor = torch.zeros_like(d[0]), torch.zeros_like(d[0])
    for q, x in zip(shares, d, strict=True):
        agrees = torch.sign(x) == signs
        total += torch.where(agrees, q * x, 0.0)
        divisor += torch.where(agrees, q, 0.0)
    return torch.where(divisor == 0, 0.0, total / torch.where(divisor == 0, 1.0, divisor))


def norm(x):
    return (x - x.min()) / (x.max() - x.min())


def pcb(d, ratio=0.1):
    n, count = len(d), d[0].numel()
    total, divisor = torch.zeros_like(d[0]), torch.zeros_like(d[0])
    for x in d:
        ordered = x.abs().flatten().sort().values
        low = ordered[int(count * 1e-4)]
        high = ordered[max(0, int(count * (1 - 1e-4)) - 1)]
        size = x.abs().clamp(low, high)
        score = torch.exp(n * norm(size) ** 2) * torch.tanh(x * d.sum(0))
        least = score.flatten().sort().values[int(count * (1 - ratio))]
        scale = norm(score.clamp(min=least))
        total += torch.sign(x) * size * scale
        divisor += scale
    return total / divisor.clamp(min=1e-12)


def breadcrumbs(d, weights, density=0.9, gamma=0.01):
    n = d[0].numel()
    dropped = math.floor(gamma * n)
    kept = min(math.floor(density * n), n - dropped)
    total = torch.zeros_like(d[0])
    for w, x in zip(weights, d, strict=True):
        sizes = x.abs().flatten().sort(descending=True).values
        band = (x.abs() <= sizes[dropped]) & (x.abs() >= sizes[dropped + kept - 1])
        total += w * torch.where(band, x, 0.0)
    return total


def close(result, expected, bound=1e-6):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return float(torch.dist(result.double(), expected)) <= bound * float(expected.norm())


class TestTies:
    def test_a_case_worked_by_hand(self, merge):
        tensors = [[[4.0, -1.0], [2.0, 0.5]], [[-2.0, -3.0], [0.25, 6.0]]]
        # Half of each is kept: 4, 2 and −3, 6; no two meet.
        expected = [[4.0, -3.0], [2.0, 6.0]]
        assert torch.equal(merge("ties", tensors, density=0.5), torch.tensor(expected))
        # All is kept: 4 outvotes −2; −1 and −3, 2 and 0.25, 0.5 and 6 agree.
        expected = [[4.0, -2.0], [1.125, 3.25]]
        assert torch.equal(merge("ties", tensors, density=1.0), torch.tensor(expected))

    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("density", [0.001, 0.2, 0.77, 1.0])
    @pytest.mark.parametrize("experts", [1, 2, 4, 20])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_agrees_with_float64(self, merge, shape, experts, density, normalize):
        tensors = vectors(experts, shape)
        weights = [2.0 / (1 + k) for k in range(experts)]
        result = merge("ties", tensors, weights, density=density, normalize=normalize)
        assert close(result, ties(tensors.double(), weights, density, normalize))

    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data(), experts=st.integers(1, 4), size=st.integers(1, 60))
    def test_magnitudes_equal_to_the_cut_are_all_kept(
        self, merge, merge_in_blocks, data, experts, size
    ):
        # Few numbers, so that most thresholds are shared; zeros and both signs among them.
        numbers = st.lists(st.integers(-3, 3), min_size=2 * size, max_size=2 * size)
        tensors = torch.tensor([data.draw(numbers) for _ in range(experts)]).float()
        tensors = tensors.view(experts, size, 2)
        density = data.draw(st.sampled_from([0.01, 0.2, 0.5, 0.9]))
        expected = ties(tensors.double(), [1.0] * experts, density).float()
        torch.testing.assert_close(merge("ties", tensors, density=density), expected)
        blocks = merge_in_blocks("ties", tensors, 3, stretch=6, density=density)
        torch.testing.assert_close(blocks, expected)

    def test_diagnostics_say_how_many_entries_are_kept_where_magnitudes_tie(self, run):
        tensors = vectors(1, (50, 40)).bfloat16().float()  # the dtype's steps make many ties
        found = run("ties", tensors, density=0.3)
        kept = int(torch.count_nonzero(found.tensor))
        assert found.diagnostics["kept_of_each"] == 600 < kept == found.counts["kept"]
        assert torch.equal(found.tensor[found.tensor != 0], tensors[0][found.tensor != 0])

    def test_an_elected_zero_counts_as_positive(self, merge):
        tensors = [[[1.0, 1.0]], [[-1.0, 2.0]]]
        assert torch.equal(merge("ties", tensors, density=1.0), torch.tensor([[1.0, 1.5]]))

    def test_a_negative_weight_turns_the_sign_that_agrees(self, merge):
        tensors = vectors(2, (9, 9))
        result = merge("ties", tensors, [1.0, -0.5], density=0.5)
        assert close(result, ties(tensors.double(), [1.0, -0.5], 0.5))


class TestBreadcrumbs:
    def test_a_case_worked_by_hand(self, merge):
        tensors = [[[8.0, -1.0], [2.0, 4.0]], [[0.5, 3.0], [-5.0, 1.0]]]
        # A quarter is dropped (8, −5), half kept (4, 2 and 3, 1).
        result = merge("breadcrumbs", tensors, [1.0, 2.0], density=0.5, gamma=0.25)
        assert torch.equal(result, torch.tensor([[0.0, 6.0], [2.0, 6.0]]))

    @pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.3, 0.0), (1.0, 0.2), (1.0, 0)])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_agrees_with_float64(self, merge, shape, density, gamma):
        tensors, weights = vectors(3, shape), [1.0, -0.5, 2.0]
        result = merge("breadcrumbs", tensors, weights, density=density, gamma=float(gamma))
        assert close(result, breadcrumbs(tensors.double(), weights, density, gamma))

    def test_outliers_and_noise_are_gone_and_the_rest_is_as_it_was(self, merge):
        tensors = torch.cat([torch.full((5,), 100.0), torch.ones(90), torch.full((5,), 1e-3)])
        result = merge("breadcrumbs", tensors.view(1, 10, 10), density=0.9, gamma=0.05).flatten()
        assert torch.equal(result, torch.cat([torch.zeros(5), torch.ones(90), torch.zeros(5)]))


class TestSce:
    def test_a_case_worked_by_hand(self, merge, run):
        tensors = [[[3.0, 1.0], [0.0, -1.0]], [[1.0, -1.0], [1.0, 1.0]]]
        # Mean squares 11/4 and 1, so q = 11/15 and 4/15; signs + + + +.
        expected = torch.tensor([[37 / 15, 1.0], [1.0, 1.0]])
        torch.testing.assert_close(merge("sce", tensors), expected)
        # The spreads are 1, 1, 1/2, 1: of half, all three that are equal; q = 11/14, 3/14.
        found = run("sce", tensors, select_topk=0.5)
        expected = torch.tensor([[36 / 14, 1.0], [0.0, 1.0]])
        torch.testing.assert_close(found.tensor, expected)
        assert found.diagnostics["selected"] == 3

    @pytest.mark.parametrize("select_topk", [0.01, 0.5, 1.0])
    @pytest.mark.parametrize("experts", [2, 4, 20])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_agrees_with_float64(self, merge, shape, experts, select_topk):
        tensors = vectors(experts, shape)
        result = merge("sce", tensors, select_topk=select_topk)
        # Where nothing is selected, the formula's weights are 0/0.
        assert close(result, sce(tensors.double(), select_topk).nan_to_num(0.0))

    def test_a_single_expert_is_given_back(self, merge):
        tensors = vectors(1, (9, 7))
        for share in (0.1, 1.0):
            assert close(merge("sce", tensors, select_topk=share), tensors[0])

    def test_entries_in_which_the_experts_agree_are_not_selected(self, merge):
        tensors = vectors(3, (20, 10))
        tensors[:, 5:] = tensors[0, 5:]
        assert not merge("sce", tensors, select_topk=0.999)[5:].any()

    def test_small_task_vectors_are_weighed_as_large_ones(self, merge):
        tensors = vectors(3, (20, 10)) * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
        small = merge("sce", 2.0**-30 * tensors, select_topk=0.5)
        assert torch.equal(small, 2.0**-30 * merge("sce", tensors, select_topk=0.5))


class TestPcb:
    def test_a_case_worked_by_hand(self, merge):
        # Two equal experts: the scores rise with the size, and equal changes give themselves. Of
        # four entries sizes are clipped to [1, 3]; the second score is the bound and counts 0.
        one = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        expected = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
        result = merge("pcb", torch.stack([one, one]), ratio=0.75)
        torch.testing.assert_close(result[1], expected[1])
        assert not result[0].any()

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    @pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
    @pytest.mark.parametrize("experts", [2, 4, 20])
    @pytest.mark.parametrize("shape", [(24, 24), (150, 40), (333,), (6, 5, 3)])
    def test_it_agrees_with_float64(self, merge, shape, experts, ratio, scale):
        tensors = scale * vectors(experts, shape)
        result = merge("pcb", tensors, ratio=ratio)
        assert close(result, pcb(tensors.double(), ratio), 1e-4)

    def test_changes_of_nearly_one_size_are_told_apart(self, merge):
        # As after a step of an optimiser that takes the sign: all sizes share their upper bits.
        generator = torch.Generator().manual_seed(3)
        signs = torch.randint(0, 2, (3, 200, 400), generator=generator) * 2.0 - 1.0
        tensors = signs * (1.01e-5 + 4e-9 * torch.rand(3, 200, 400, generator=generator))
        result = merge("pcb", tensors)
        assert result.any()
        assert close(result, pcb(tensors.double(), 0.1), 1e-2)

    @pytest.mark.parametrize("one", [torch.zeros(9, 7), torch.full((9, 7), 0.5)])
    def test_a_zero_or_constant_expert_has_no_say(self, merge, one):
        others = vectors(2, (9, 7))
        if one.any():
            result = merge("pcb", one.unsqueeze(0))
            assert not result.any()
        else:
            # N and Σ dⱼ are the same to the others, but for the exponent.
            result = merge("pcb", torch.cat([others, one.unsqueeze(0)]))
            assert result.isfinite().all()
            assert result.any()

    def test_sizes_too_near_to_divide_by_their_distance_count_as_equal(self, merge):
        tiny = torch.full((2, 40, 30), 1e-40)
        tiny[:, ::2] = 2e-40
        result = merge("pcb", tiny)
        assert result.isfinite().all()
        assert not result.any()

    def test_only_the_share_of_best_scores_counts(self, merge):
        tensors = vectors(1, (50, 40))
        # The score at the quantile is the lowest that counts, and counts 0.
        assert int(torch.count_nonzero(merge("pcb", tensors, ratio=0.25))) == 499


class TestDare:
    def test_what_is_kept_is_divided_by_the_probability(self, merge):
        tensors = vectors(1, (100, 80))
        result = merge("dare", tensors, density=0.25)
        kept = result != 0
        assert torch.equal(result[kept], 4 * tensors[0][kept])
        assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.02)

    def test_all_are_kept_with_probability_one(self, merge):
        tensors, weights = vectors(3, (9, 7)), [1.0, -0.5, 2.0]
        expected = merge("task_arithmetic", tensors, weights)
        assert torch.equal(merge("dare", tensors, weights, density=1.0), expected)

    def test_the_expectation_is_task_arithmetic(self, merge):
        tensors = vectors(2, (9, 7))
        total = torch.zeros(9, 7)
        for draw in range(400):
            total += merge("dare", tensors, seed=lambda index, draw=draw: 1000 * index + draw)
        assert torch.dist(total / 400, tensors.sum(0)) < 0.1 * tensors.sum(0).norm()

    def test_experts_and_seeds_draw_differently(self, merge):
        one = vectors(1, (50, 40))
        both = merge("dare", one.expand(2, 50, 40))
        assert {0.0, 2.0, 4.0} == set((both / one[0]).unique().tolist())
        other = merge("dare", one, seed=lambda index: 99)
        assert not torch.equal(other, merge("dare", one))

    @pytest.mark.parametrize("rows", [1, 3, 7])
    def test_blocks_that_begin_anywhere_draw_the_same(self, merge, merge_in_blocks, rows):
        tensors = vectors(2, (23, 5))
        assert torch.equal(merge_in_blocks("dare", tensors, rows), merge("dare", tensors))
