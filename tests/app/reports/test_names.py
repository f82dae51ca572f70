"""What merges are called in tables and charts."""

from __future__ import annotations

import pytest

from app.reports.names import label_of, names_of


def merge(name=None, method="tsv_m", **parameters):
    return {"name": name, "method": method, "parameters": parameters}


@pytest.mark.parametrize(
    ("parameters", "label"),
    [({}, "ties"), ({"scaling_coefficient": 0.5, "density": 1}, "ties λ=0.5")],
)
def test_a_merge_is_labelled_by_method_and_coefficient(parameters, label):
    assert label_of("ties", parameters) == label


def test_names_are_peoples_own_and_no_two_are_alike():
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
