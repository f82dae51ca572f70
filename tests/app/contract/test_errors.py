"""Errors are bounded and valid Unicode, whatever untrusted text they quote."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import AfluenteError, InvalidRequestError, Problem
from app.contract.recipe import parse_request


@given(st.text(st.characters(exclude_categories=[])), st.text(st.characters()))
def test_errors_with_any_text_can_be_stored_and_sent(message: str, param: str):
    error = InvalidRequestError.of([Problem(message, param)])
    text = json.dumps([error.as_record(), *[p.as_dict() for p in error.problems]])
    json.dumps(json.loads(text), ensure_ascii=False).encode()
    assert "\\u0000" not in text


def test_quotes_in_errors_are_bounded():
    error = AfluenteError("x" * 10**6, param="y" * 10**6, problems=[Problem("z" * 10**6)] * 10**4)
    told = json.dumps([error.as_record(), *[p.as_dict() for p in error.as_problems()]])
    assert len(told) < 150_000


MANY = 40_000
WRONG: dict[str, dict[str, Any]] = {
    "unknown fields": {f"chekpoints{i}": 1 for i in range(MANY)},
    "unknown parameters": {"parameters": {f"scaling_coefficien{i}": 1 for i in range(MANY)}},
    "parameters of rules": {
        "rules": [
            {"match": "a", "method": "soup", "parameters": {f"lamda{i}": 1 for i in range(200)}}
        ] * 200
    },
    "checkpoints": {"checkpoints": ["a"] * MANY},
    "checkpoints that are none": {"checkpoints": [1] * MANY},
    "metadata": {"metadata": {f"k{i}": 1 for i in range(MANY)}},
    "a long method": {"method": "soup" * MANY},
    "a long name": {"name": "a" * 10**6},
    "a long size": {"output": {"max_shard_size": "1" * 10**6}},
    "sets without end": {"evaluation": {"datasets": [{"name": "a", "uri": "b"}] * MANY}},
    "merges without end": {
        "evaluation": {"datasets": [{"name": "a", "uri": "b"}], "compare_with": ["x"] * MANY}
    },
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_request_that_is_wrong_in_many_places_is_refused_soon_and_briefly(case: str):
    begun = time.process_time()
    with pytest.raises(InvalidRequestError) as refused:
        parse_request({"checkpoints": ["a", "b"], "method": "soup", **WRONG[case]})
    assert time.process_time() - begun < 3  # 0.1 s here
    assert 1 <= len(refused.value.problems) <= 100
    assert len(str([problem.as_dict() for problem in refused.value.problems])) < 60_000
