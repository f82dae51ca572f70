"""A plan places every tensor once, within the files' limits and the format's rules."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import InvalidRequestError
from app.contract.recipe import parse_request
from app.contract.tensors import ITEM_SIZES, TensorHeader
from app.planning.layout import index_document, lay_out
from app.planning.plan import Treatment, make_plan

headers = st.lists(
    st.tuples(
        st.text("abc.", min_size=1, max_size=6),
        st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL"]),
        st.lists(st.integers(0, 5), max_size=3),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda item: item[0],
)


def tensor(name: str, dtype: str = "F32", shape: tuple[int, ...] = (2, 3)) -> TensorHeader:
    size = ITEM_SIZES[dtype]
    for length in shape:
        size *= length
    return TensorHeader(name, dtype, shape, "model.safetensors", 100, 100 + size)


@given(headers, st.integers(1, 200))
def test_files_tile_their_tensors_and_hold_to_the_limit(items: Any, limit: int) -> None:
    tensors = [tensor(name, dtype, tuple(shape)) for name, dtype, shape in items]
    files = lay_out(tensors, {t.name: t.dtype for t in tensors}, limit)
    placed = [t for file in files for t in file.tensors]
    assert sorted(t.name for t in placed) == sorted(t.name for t in tensors)
    for file in files:
        length = int.from_bytes(file.header[:8], "little")
        document = json.loads(file.header[8:])
        assert len(file.header) == 8 + length
        assert length % 8 == 0
        position = len(file.header)
        for t in file.tensors:
            assert (t.start, t.file) == (position, file.name)
            assert document[t.name]["data_offsets"] == [
                t.start - len(file.header),
                t.end - len(file.header),
            ]
            assert t.size_bytes == t.numel * ITEM_SIZES[t.dtype]
            position = t.end
        assert file.size_bytes == position
        assert len(file.tensors) == 1 or position - len(file.header) <= limit
    assert set(index_document(files)["weight_map"]) == {t.name for t in tensors}  # type: ignore[call-overload]


@given(headers)
def test_wide_dtypes_go_first_so_that_every_tensor_is_aligned(items: Any) -> None:
    tensors = [tensor(name, dtype, tuple(shape)) for name, dtype, shape in items]
    (file,) = lay_out(tensors, {t.name: t.dtype for t in tensors}, 10**9)
    assert all(t.start % ITEM_SIZES[t.dtype] == 0 for t in file.tensors)


def plan_of(document: dict[str, Any], *tensors: TensorHeader) -> Any:
    by_name = {t.name: t for t in tensors}
    recipe = parse_request({"base": "/b", "checkpoints": ["/x", "/y"], **document}).recipe
    return make_plan(recipe, by_name, by_name, [by_name, by_name])


def test_treatments_follow_shape_dtype_and_rules() -> None:
    plan = plan_of(
        {
            "method": "tsv_m",
            "rules": [{"match": "kept*", "method": "keep_base"}, {"match": "n*", "method": "soup"}],
        },
        tensor("matrix"),
        tensor("vector", shape=(5,)),
        tensor("kept"),
        tensor("counts", "I64"),
    )
    found = {step.name: step.treatment for step in plan.steps}
    assert found == {
        "matrix": Treatment.MERGE,
        "vector": Treatment.MEAN,
        "kept": Treatment.KEEP,
        "counts": Treatment.COPY,
    }
    assert plan.unmatched_rules == ("n*",)


def test_the_first_rule_that_matches_wins() -> None:
    rules = [{"match": "m*", "method": "soup"}, {"match": "matrix", "method": "keep_base"}]
    (step,) = plan_of({"method": "tsv_m", "rules": rules}, tensor("matrix")).steps
    assert step.assignment.method == "soup"


def test_what_is_read_is_counted() -> None:
    big = tensor("matrix", shape=(100, 10))
    assert plan_of({"method": "tsv_m"}, big).as_document()["totals"]["bytes_read"] == 3 * 4000
    assert plan_of({"method": "soup"}, big).as_document()["totals"]["bytes_read"] == 2 * 4000
    assert plan_of({"method": "soup"}, big).as_document()["totals"]["bytes_written"] > 4000


def test_a_glob_of_too_many_wildcards_is_refused_by_name() -> None:
    for match in ("*" * 33, "?" * 33, "[a]" * 33, "*a?[b]" * 11):
        rules = [{"match": match, "method": "keep_base"}]
        with pytest.raises(InvalidRequestError, match="at most 32 wildcards") as refusal:
            parse_request({"checkpoints": ["a"], "method": "soup", "rules": rules})
        assert refusal.value.as_problems()[0].param == "rules[0].match"


def test_hostile_globs_on_many_tensors_take_bounded_time() -> None:
    """Patterns that a matcher with backtracking would never finish."""
    names = [f"model.decoder.layers.{n}.{'a' * 40}" for n in range(1300)]
    tensors = {name: tensor(name) for name in names}
    rules = [
        {"match": f"{start}{n}", "method": "keep_base"}
        for n, start in enumerate(("*a" * 31, "*?" * 16, "*[!z]" * 16, "a" * 490) * 50)
    ]
    recipe = parse_request({"checkpoints": ["a", "b"], "method": "soup", "rules": rules}).recipe
    started = time.process_time()
    assert len(make_plan(recipe, tensors, None, [tensors, tensors]).unmatched_rules) == len(rules)
    assert time.process_time() - started < 5.0


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("method", ["iso_c", "tsv_m", "ties", "task_arithmetic"])
def test_tensors_without_entries_are_kept(method: str, shape: tuple[int, ...]) -> None:
    tensors = {"w": tensor("w", shape=shape)}
    document = {"base": "file:///b", "checkpoints": ["file:///e"], "method": method}
    plan = make_plan(parse_request(document).recipe, tensors, tensors, [tensors])
    assert [step.treatment for step in plan.steps] == [Treatment.KEEP]
