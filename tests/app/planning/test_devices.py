"""A merge takes a GPU where it is estimated to be faster, not because there is one."""

import pytest

from app.contract.recipe import parse_request
from app.contract.tensors import TensorHeader
from app.planning.devices import prefers_gpu
from app.planning.plan import Plan, make_plan

EXPERTS = 10


def plan_of(method: str) -> Plan:
    """Return the plan of some square matrices of Whisper-large-v3's size and 10 experts."""
    size = 2 * 1280 * 1280
    tensors = {f"{n}": TensorHeader(f"{n}", "F16", (1280, 1280), "f", 0, size) for n in range(9)}
    uris = [f"file:///e{n}" for n in range(EXPERTS)]
    recipe = parse_request({"base": "file:///b", "checkpoints": uris, "method": method}).recipe
    return make_plan(recipe, tensors, tensors, [tensors] * EXPERTS)


@pytest.mark.parametrize("method", ["boosted_tsv_m", "iso_c", "iso_cts"])
def test_few_cores_prefer_a_gpu_and_many_do_not(method: str) -> None:
    chosen = [prefers_gpu(plan_of(method), EXPERTS, cores) for cores in (1, 2, 256)]
    assert chosen[0]
    assert not chosen[-1]
    assert chosen == sorted(chosen, reverse=True)


def test_a_measured_rate_replaces_the_assumed_one() -> None:
    plan = plan_of("boosted_tsv_m")
    assert not prefers_gpu(plan, EXPERTS, 16)
    assert prefers_gpu(plan, EXPERTS, 16, eigh_seconds=1e-3)


def test_entrywise_merges_stay_on_the_cpu() -> None:
    assert not prefers_gpu(plan_of("ties"), EXPERTS, 1)
