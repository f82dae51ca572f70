from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reports.significance import holm
from app.reports.studies.table import study_table
from tests.app.reports.studies import synthetic
from tests.app.reports.studies.synthetic import Speech, system

PROBABILITIES = st.lists(st.floats(0, 1), max_size=12)
COMPARISONS = ("against_base", "against_best")


def cells(section: dict[str, Any]) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    return [
        (row, name, cell)
        for row in section["rows"]
        for kind in ("sets", "averages")
        for name, cell in row[kind].items()
    ]


def test_trials_come_last_the_best_first_and_failed_ones_at_the_end(document) -> None:
    rows = document["development"]["rows"]
    assert [row["kind"] for row in rows] == ["base", *["expert"] * 2, "reference", *["trial"] * 5]
    # The winner, worse but feasible, not feasible, stopped, failed.
    assert [row["number"] for row in rows[4:]] == [1, 0, 3, 2, 4]
    assert [row["number"] for row in document["test"]["rows"][4:]] == [1, 0]


def test_the_number_of_trials_looked_at_is_in_the_table(document) -> None:
    counted = {"asked": 5, "complete": 3, "running": 0, "stopped": 1, "failed": 1}
    assert document["trials"] == counted


def test_the_best_of_a_column_is_the_least_of_complete_trials_and_references(document) -> None:
    for section in (document["development"], document["test"]):
        for name in {name for _, name, _ in cells(section)}:
            column = [(row, cell) for row, its_name, cell in cells(section) if its_name == name]
            able = [
                cell["rate"]
                for row, cell in column
                if row["kind"] in {"trial", "reference"} and row["status"] == "complete"
            ]
            best = [(row, cell["rate"]) for row, cell in column if cell["best"]]
            assert best
            for row, rate in best:
                assert rate == min(able)
                assert (row["kind"] in {"trial", "reference"}, row["fraction"]) == (True, 1.0)


def test_a_stopped_trial_is_never_the_best_and_is_compared_on_what_it_decoded(document) -> None:
    base, *_ = document["development"]["rows"]
    stopped = next(row for row in document["development"]["rows"] if row["status"] == "stopped")
    assert (stopped["fraction"], stopped["number"]) == (0.25, 2)
    for name, cell in stopped["sets"].items():
        assert (cell["rate"], cell["best"], cell["utterances"]) == (0.0, False, 6)
        shared = synthetic.SETS[[one.name for one in synthetic.SETS].index(name)]
        # The base's rate on the same six utterances, not on all of them.
        few = system("base", "base", (0.3, 0.35, 0.45, 0.1), fraction=0.25)
        part = study_table(synthetic.facts(), [few], [])["development"]["rows"][0]["sets"][name]
        assert cell["against_base"]["delta"] == pytest.approx(-part["rate"])
        assert part["rate"] != base["sets"][name]["rate"]
        assert shared.utterances == base["sets"][name]["utterances"] == 24


def test_p_values_are_corrected_among_the_kept_merges_and_only_there(document) -> None:
    for _, _, cell in cells(document["development"]):
        assert all(cell[other] is None or cell[other]["p_holm"] is None for other in COMPARISONS)
    seen = 0
    for row, _, cell in cells(document["test"]):
        for other in COMPARISONS:
            found = cell[other]
            if found is None or found["p"] is None or row["kind"] != "trial":
                assert found is None or found["p_holm"] is None
            else:
                assert found["p"] <= found["p_holm"] <= min(1.0, 2 * found["p"])
                seen += found["p_holm"] > found["p"]
    assert seen


@given(PROBABILITIES)
def test_holm_never_lowers_a_p_value_and_keeps_their_order(probabilities: list[float]) -> None:
    corrected = holm(probabilities)
    ascending = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    assert all(raw <= one <= 1 for raw, one in zip(probabilities, corrected, strict=True))
    assert [corrected[place] for place in ascending] == sorted(corrected)
    if probabilities:
        assert min(corrected) == min(1.0, len(probabilities) * min(probabilities))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_an_average_is_tested_against_the_base_with_its_interval(document) -> None:
    winner = next(row for row in document["test"]["rows"] if row["winner"])
    found = winner["averages"]["in_domain"]["against_base"]
    deltas = [winner["sets"][name]["against_base"]["delta"] for name in ("telephone", "parliament")]
    assert found["delta"] == pytest.approx(sum(deltas) / 2)
    assert found["delta_ci95"]["low"] < found["delta"] < found["delta_ci95"]["high"] < 0
    assert found["p"] == pytest.approx(2 / 1001)
    reference = document["test"]["rows"][3]
    # Both are about as good in domain: the interval of the difference contains 0.
    close = (winner if winner["averages"]["in_domain"]["against_best"] else reference)["averages"]
    against = close["in_domain"]["against_best"]
    assert against["p"] > 0.05
    assert against["delta_ci95"]["low"] < 0 < against["delta_ci95"]["high"]


def test_an_average_over_the_sets_of_another_column_is_not_shown_twice(document) -> None:
    shown = [(one["kind"], one["name"]) for one in document["test"]["columns"]]
    sets = [("set", one.name) for one in synthetic.SETS]
    assert shown == [*sets, ("average", "in_domain"), ("average", "full"), ("average", "all")]
    assert "english" in document["test"]["rows"][0]["averages"]


def test_what_was_decoded_otherwise_has_no_rate_and_a_reason() -> None:
    sets = (Speech("near", "in_domain", 8, 2), Speech("far", "out_of_domain", 8, 2))
    trial = system("trial", "a", (0.1, 0.1), sets, number=0)
    expert = system("expert", "one", (0.1,), sets)
    document = study_table(synthetic.facts(), [trial, expert], [])
    row = document["development"]["rows"][0]
    assert row["sets"]["near"]["rate"] is not None
    assert row["sets"]["far"]["rate"] is None
    assert row["sets"]["far"]["not_comparable"] == "it was not evaluated on this dataset"
    assert row["averages"]["full"]["rate"] is row["averages"]["full"]["against_best"] is None
    assert row["averages"]["full"]["not_comparable"] == ["far"]


def test_a_study_without_results_has_a_table_without_sections() -> None:
    document = study_table(synthetic.facts(outcome={}), [], [])
    assert document["development"] is document["test"] is document["winner"] is None
    assert document["trials"]["asked"] == 0
    waiting = system("trial", "a", (), number=0, status="running", fraction=0.0)
    section = study_table(synthetic.facts(outcome={}), [waiting], [])["development"]
    assert (section["sets"], section["columns"], len(section["rows"])) == ([], [], 1)
