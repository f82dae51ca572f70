"""A request becomes a complete recipe, or one error with all problems."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import InvalidRequestError
from app.contract.recipe import parse_request
from app.contract.requests import parse_size


def request(**changes: Any) -> dict[str, Any]:
    document = {
        "base": "file:///m/base",
        "checkpoints": ["file:///m/a", "file:///m/b"],
        "method": "tsv_m",
    }
    return {**document, **changes}


def params(document: Any) -> list[str | None]:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(document)
    return [problem.param for problem in caught.value.as_problems()]


def test_defaults_are_filled_in() -> None:
    recipe = parse_request(request()).recipe
    assert recipe.parameters["scaling_coefficient"] == 1.0
    assert [source.name for source in recipe.checkpoints] == ["a", "b"]
    assert recipe.weights == (1.0, 1.0)


def test_names_are_made_unique_and_given_ones_are_kept() -> None:
    checkpoints = [
        "file:///x/a",
        "hf://org/a@main",
        {"uri": "/y/a/"},
        {"uri": "/z", "name": "a-2"},
        "/base",
    ]
    names = [s.name for s in parse_request(request(checkpoints=checkpoints)).recipe.checkpoints]
    assert names == ["a", "a-3", "a-4", "a-2", "base-2"]


def test_everything_that_is_wrong_is_listed_at_once() -> None:
    document = request(
        base=None,
        parameters={"scaling_coeficient": 1, "noise_floor": -1},
        rules=[
            {"match": "*", "method": "keep_base", "parameters": {"x": 1}},
            {"match": "*", "method": "ties_"},
        ],
        checkpoints=[{"uri": "/a", "name": "x"}, {"uri": "/b", "name": "x"}],
    )
    assert set(params(document)) == {
        "base",
        "parameters.scaling_coeficient",
        "parameters.noise_floor",
        "rules[0].parameters",
        "rules[1].method",
        "checkpoints[1].name",
    }


def test_an_unknown_method_is_reported_together_with_misspelt_fields() -> None:
    assert params(request(method="tsvm", parametrs={})) == ["parametrs", "method"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"checkpoints": []}, "checkpoints"),
        ({"checkpoints": ["/a"] * 33}, "checkpoints"),
        ({"checkpoints": [{"uri": "/a", "name": "base"}]}, "checkpoints[0].name"),
        ({"checkpoints": [{"uri": "/a", "weight": float("nan")}]}, "checkpoints[0].weight"),
        ({"checkpoints": [{"uri": "/a", "wieght": 1}]}, "checkpoints[0].wieght"),
        ({"base": {"uri": "/b", "weight": 2}}, "base"),
        ({"seed": -1}, "seed"),
        ({"output": {"dtype": "int8"}}, "output.dtype"),
        ({"output": {"max_shard_size": "5 quux"}}, "output.max_shard_size"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ],
)
def test_a_field_that_is_wrong_is_named(changes: dict[str, Any], param: str) -> None:
    assert params(request(**changes)) == [param]


def test_weights_that_sum_to_zero_are_refused_where_they_are_normalised() -> None:
    checkpoints = [{"uri": "/a", "weight": 1.0}, {"uri": "/b", "weight": -1.0}]
    assert params({"checkpoints": checkpoints, "method": "soup"})
    assert parse_request(
        {"checkpoints": checkpoints, "method": "soup", "parameters": {"normalize": False}}
    )


def test_equivalent_requests_have_equal_fingerprints() -> None:
    short = parse_request(request())
    long = parse_request(
        request(
            base={"uri": "file:///m/base"},
            parameters={"scaling_coefficient": 1.0},
            seed=0,
            rules=[],
        )
    )
    assert short.fingerprint == long.fingerprint
    assert short.fingerprint != parse_request(request(seed=1)).fingerprint


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["base", "checkpoints", "method", "parameters", "rules", "uri", "name"]
                )
                | st.text(max_size=4),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_document_gives_a_recipe_or_a_list_of_problems(document: Any) -> None:
    with suppress(InvalidRequestError):
        parse_request(document)


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 kb", 1500), ("2GiB", 2**31), ("7", 7)]
)
def test_sizes_are_read_with_their_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("uri", ["https://[x/y", "https://]x/y", "//[", "https://[::1"])
def test_an_invalid_uri_still_has_a_name(uri: str) -> None:
    [first, _] = parse_request(request(checkpoints=[uri, "/b"])).recipe.checkpoints
    assert first.name == "checkpoint"


@pytest.mark.parametrize("text", ["9" * 400 + "GB", "9" * 400, "9223372036854775808", "1e400GB"])
def test_a_size_beyond_all_bounds_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 120
    assert params(request(output={"max_shard_size": text})) == ["output.max_shard_size"]
