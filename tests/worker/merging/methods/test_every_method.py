"""What holds for every method of the catalogue, whatever it computes."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.contract.catalogue import CATALOGUE, parse_parameters
from app.contract.errors import InvalidRequestError
from worker.merging.methods import load

ORDERED = frozenset({"slerp"})
"""Methods whose result depends on the order of the experts."""
DRAWN = frozenset(name for name, method in CATALOGUE.items() if method.draws)
"""Methods that draw: here an expert's draws are those of its place."""
NOT_HOMOGENEOUS = frozenset({"pcb", "ram"})
"""Methods in which the size of the task vectors matters by their formula (a tanh, a threshold)."""
DIRECTIONS = frozenset({"karcher", "multi_slerp"})
"""Methods that refuse directions which cancel; a tensor of one entry has only two."""
SHAPES = [(1, 1), (1, 9), (9, 1), (24, 24), (40, 12), (12, 40)]
OPTIONS = {
    "model_stock": [{}, {"filter_wise": True}],
    "nuslerp": [{}, {"axis": 0}, {"axis": -1}],
    "ties": [{}, {"density": 1.0}],
    "sce": [{}, {"select_topk": 0.5}],
    "breadcrumbs": [{}, {"density": 1.0, "gamma": 0.0}],
}
"""Parameters that decide how often a method reads."""
EVERY_METHOD = list(CATALOGUE)


@pytest.fixture(params=EVERY_METHOD)
def name(request):
    return request.param


def shapes_of(name):
    return SHAPES if CATALOGUE[name].spectral else [*SHAPES, (7,), (6, 5, 3)]


def experts_of(name, among=(1, 2, 20)):
    least, most = CATALOGUE[name].min_experts, CATALOGUE[name].max_experts
    return [n for n in among if n >= least and (most is None or n <= most)]


def some(name):
    return max(experts_of(name, (1, 2, 3, 4)))


def some_weights(name):
    return [1.0, 0.5, -0.25, 2.0][: some(name)] if CATALOGUE[name].uses_weights else None


def random(name, experts, *shape, seed):
    tensors = torch.randn(experts, *shape, generator=torch.Generator().manual_seed(seed))
    return tensors.abs() if name in DIRECTIONS and tensors[0].numel() < 4 else tensors


EVERY_CASE = [
    pytest.param(name, shape, experts, id=f"{name}-{shape}-{experts}")
    for name in EVERY_METHOD
    for shape in shapes_of(name)
    for experts in experts_of(name)
]


@pytest.mark.parametrize(("name", "shape", "experts"), EVERY_CASE)
def test_the_result_is_finite_float32_of_the_tensors_shape(name, shape, experts, merge):
    result = merge(name, random(name, experts, *shape, seed=1))
    assert result.shape == torch.Size(shape)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert result.isfinite().all()


def test_inputs_are_not_written_to(name, merge):
    base, tensors = torch.randn(60, 40), torch.randn(some(name), 60, 40)
    before = base.clone(), tensors.clone()
    merge(name, tensors, base=base)
    assert torch.equal(base, before[0])
    assert torch.equal(tensors, before[1])


def test_views_that_are_not_contiguous_are_taken(name, merge):
    tensors = random(name, some(name), 40, 30, seed=2)
    view = tensors.mT.contiguous().mT
    result, expected = merge(name, view), merge(name, tensors)
    assert torch.dist(result, expected) <= 1e-4 * expected.norm()


def test_zero_task_vectors_give_zero(name, merge):
    assert not merge(name, torch.zeros(some(name), 30, 20)).any()


def test_a_second_run_gives_the_same_bits(name, merge):
    tensors = random(name, some(name), 60, 40, seed=3)
    assert torch.equal(merge(name, tensors), merge(name, tensors.clone()))


def test_experts_and_weights_permuted_together_change_nothing(name, merge, random_tensors):
    if name in ORDERED | DRAWN:
        pytest.skip("the order of the experts is this method's meaning")
    order = [2, 0, 3, 1] if some(name) == 4 else [1, 0]
    tensors, weights = random_tensors(some(name), (60, 40)), some_weights(name)
    permuted = [weights[i] for i in order] if weights else None
    result = merge(name, tensors, weights)
    assert torch.dist(merge(name, tensors[order], permuted), result) < 1e-6 * result.norm()


def test_a_weight_of_one_is_the_default(name, merge, random_tensors):
    if not CATALOGUE[name].uses_weights:
        pytest.skip("no weights")
    tensors = random_tensors(some(name), (30, 20))
    assert torch.equal(merge(name, tensors, [1.0] * len(tensors)), merge(name, tensors))


@pytest.mark.parametrize("experts", [1, 2, 20])
@pytest.mark.parametrize("shape", [(40, 40), (100, 30)])
def test_equal_experts_are_merged_without_noise(name, merge, experts, shape):
    if experts not in experts_of(name):
        pytest.skip("not that many experts")
    one = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    result = merge(name, one.expand(experts, *shape))
    assert result.isfinite().all()
    # Boosting may raise every singular value to the largest, √p times the norm.
    assert result.norm() <= 1.1 * experts * min(shape) ** 0.5 * one.norm()


@pytest.mark.parametrize("rank", [1, 8])
def test_low_rank_experts_merge_into_the_space_they_span(name, merge, rank):
    if CATALOGUE[name].family != "subspace" and name != "task_arithmetic":
        pytest.skip("works entry by entry, or on weights")
    generator = torch.Generator().manual_seed(5)
    left = torch.randn(4, 200, rank, generator=generator)
    tensors = left @ torch.randn(4, rank, 64, generator=generator)
    result = merge(name, tensors, base=torch.zeros(200, 64))
    values = torch.linalg.svdvals(result.double())
    assert result.isfinite().all()
    assert values[4 * rank :].sum() < 1e-5 * values.sum()


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    experts=st.integers(1, 6), m=st.integers(1, 12), n=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_small_shapes_of_every_kind_are_finite(name, merge, experts, m, n, seed):
    if experts in experts_of(name, range(7)):
        assert merge(name, random(name, experts, m, n, seed=seed)).isfinite().all()


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_scale_is_carried_through(name, merge, random_tensors, scale):
    if name in NOT_HOMOGENEOUS:
        pytest.skip("depends on the scale")
    tensors = random_tensors(some(name), (30, 20))
    expected = merge(name, tensors)
    assert torch.dist(merge(name, scale * tensors) / scale, expected) < 1e-5 * expected.norm()


def test_blocks_of_a_blockwise_method_are_the_whole_to_the_bit(name, merge, merge_in_blocks):
    if CATALOGUE[name].spectral:
        pytest.skip("in test_tall.py")
    tensors = random(name, some(name), 37, 11, seed=6)
    whole = merge(name, tensors)
    # Sums are taken in float64: their order shows in the last bit of float32 at most.
    torch.testing.assert_close(merge_in_blocks(name, tensors, 5), whole, rtol=3e-7, atol=0)


def test_reductions_joined_over_stretches_are_those_of_the_whole(name, merge, merge_in_blocks):
    parameters = CATALOGUE[name].model_validate({})
    if parameters.readings == 1 or parameters.spectral:
        pytest.skip("reduces nothing, or in test_tall.py")
    tensors = random(name, some(name), 60, 11, seed=7).half().float()
    whole = merge(name, tensors)
    joined = merge_in_blocks(name, tensors, 4, stretch=20)
    torch.testing.assert_close(joined, whole, rtol=3e-7, atol=0)


def test_the_catalogue_says_how_often_a_method_reads(name, run):
    for options in OPTIONS.get(name, [{}]):
        found = run(name, torch.randn(some(name), 30, 20), **options)
        assert found.readings == parse_parameters(name, options).readings


def test_diagnostics_and_warnings_are_what_json_can_carry(name, run):
    found = run(name, torch.randn(some(name), 30, 20))
    json.dumps(found.diagnostics, allow_nan=False)
    json.dumps(found.counts)
    if CATALOGUE[name].spectral:
        assert len(found.diagnostics["experts"]) == some(name)


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(InvalidRequestError, match="tsv_m"):
        load("tsvm")
