"""Display names of merges in tables and charts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reports.names import label_of, names_of
from app.reports.rendering import render_table


def merge(name=None, method="tsv_m", **parameters):
    return {"name": name, "method": method, "parameters": parameters}


@pytest.mark.parametrize(
    ("parameters", "label"),
    [({}, "ties"), ({"scaling_coefficient": 0.5, "density": 1}, "ties λ=0.5")],
)
def test_a_merge_is_labelled_by_method_and_coefficient(parameters, label):
    assert label_of("ties", parameters) == label


def test_names_are_kept_and_made_distinct():
    merges = {
        "mrg_1aaaa": merge("nightly"),
        "mrg_2bbbb": merge("nightly"),
        "mrg_3cccc": merge("base"),
        "mrg_4dddd": merge(scaling_coefficient=1.0),
        "mrg_5eeee": merge(scaling_coefficient=1.0),
        "mrg_6ffff": merge("best"),
    }
    assert names_of(merges, {"base": "base"}) == {
        "mrg_1aaaa": "nightly …aaaa",
        "mrg_2bbbb": "nightly …bbbb",
        "mrg_3cccc": "base …cccc",
        "mrg_4dddd": "tsv_m λ=1 …dddd",
        "mrg_5eeee": "tsv_m λ=1 …eeee",
        "mrg_6ffff": "best",
    }


@given(
    names=st.lists(st.sampled_from([None, "", " ", "x", "x …1bbb", "x …2bbb", "base"]), max_size=6),
    ends=st.lists(st.sampled_from(["1bbb", "2bbb", "21bbb"]), min_size=6, max_size=6),
)
def test_any_names_become_distinct(names, ends):
    merges = {
        f"mrg_{number}{end}": merge(name)
        for number, (name, end) in enumerate(zip(names, ends, strict=False))
    }
    called = names_of(merges, {"base": "base"})
    assert len({*called.values(), "base"}) == len(merges) + 1
    rate = {"datasets": [], "averages": {}}
    document = rate | {"merge_id": "mrg_x", "systems": dict.fromkeys(merges, rate)}
    lines = render_table(document, names=called | {"mrg_x": "base"}).splitlines()
    assert len(lines) == 2 + len(merges) + 1


def test_control_characters_are_removed_from_names():
    (called,) = names_of(
        {"mrg_1aaaa": merge("\x1b[31mred\n\u202eevil " + "long " * 40)}, {}
    ).values()
    assert called.isprintable()
    assert len(called) <= 40
