from __future__ import annotations

import csv
import io

import pytest
from pydantic import ValidationError

from app.contract.gate import GateSpec
from app.reports.gate import judge, unfinished
from app.reports.rendering import render_table
from app.reports.spreadsheet import render_csv
from app.reports.wer import build_wer

WORSE = (("um dois três quatro", "um dois três"), ("cinco", "cinco"))  # 1 of 5
BETTER = (("um dois três quatro", "um dois três quatro"), ("cinco", "cinco"))
ASKED = ("set",)


def standing(name: str, status: str = "succeeded") -> dict[str, str]:
    return {"name": name, "evaluation_id": "evl_1", "status": status}


@pytest.fixture
def document(make_dataset) -> dict:
    systems = {"base": [make_dataset("set", *BETTER)]}
    return build_wer("mrg_1", "succeeded", [make_dataset("set", *WORSE)], systems)


def checks(document: dict, gate: dict, asked: tuple[str, ...] = ASKED) -> list[tuple]:
    sets = [standing(name) for name in asked]
    verdict = judge(document, GateSpec.model_validate(gate), sets)
    assert verdict["passed"] == (not verdict["failures"])
    return [(failure["dataset"], failure["check"]) for failure in verdict["failures"]]


def test_a_rate_equal_to_its_limit_passes(document: dict) -> None:
    assert checks(document, {"max_wer": 0.2, "max_regression": 0.2}) == []
    assert checks(document, {"max_wer": {"set": 0.2}}) == []


def test_a_failure_says_which_set_by_how_much_and_against_what(document: dict) -> None:
    gate = GateSpec.model_validate({"max_wer": 0.15, "max_regression": {"set": 0.05}})
    high, regressed = judge(document, gate, [standing("set")])["failures"]
    assert (high["dataset"], high["value"], high["limit"]) == ("set", 0.2, 0.15)
    assert high["excess"] == pytest.approx(0.05)
    assert high["message"] == "set: WER 20.00 % is 5.00 points above the 15.00 % allowed"
    assert regressed["message"] == (
        "set: WER 20.00 % is 20.00 points above base's 0.00 %, 15.00 more than the 5.00 allowed"
    )


def test_a_negative_regression_asks_for_an_improvement(make_dataset) -> None:
    merge, base = [make_dataset("set", *BETTER)], {"base": [make_dataset("set", *WORSE)]}
    document = build_wer("mrg_1", "succeeded", merge, base)
    assert checks(document, {"max_regression": -0.2}) == []
    assert checks(document, {"max_regression": -0.3}) == [("set", "max_regression")]


def test_a_set_by_name_goes_before_every_set(document: dict) -> None:
    assert checks(document, {"max_wer": {"*": 0.1, "set": 0.5}}) == []
    assert checks(document, {"max_wer": {"*": 0.5, "set": 0.1}}) == [("set", "max_wer")]
    assert checks(document, {"max_wer": {"other": 0.1}}) == [("other", "complete")]


def test_missing_partial_or_unfinished_sets_never_pass(document: dict, make_dataset) -> None:
    loose = {"max_wer": 1.0}
    assert checks(document, loose, ("set", "gone")) == [("gone", "complete")]
    for status in ("queued", "running", "failed", "cancelled", "none"):
        assert checks(document | {"status": status}, loose) == [(None, "complete")]
    assert checks(build_wer("mrg_1", "succeeded", [], {}), loose, ()) == [(None, "complete")]
    partial = build_wer("mrg_1", "partial", [make_dataset("set", *WORSE, skip=(1,))], {})
    assert checks(partial, loose) == [("set", "complete")]


def test_a_comparison_that_cannot_be_made_never_passes(make_dataset) -> None:
    merge = [make_dataset("set", *BETTER)]
    loose = {"max_regression": 1.0}
    nothing = build_wer("mrg_1", "succeeded", merge, {})
    assert checks(nothing, loose) == [("set", "max_regression")]
    other = {"base": [make_dataset("set", *BETTER, num_beams=1)]}
    unlike = build_wer("mrg_1", "succeeded", merge, other)
    failure = judge(unlike, GateSpec.model_validate(loose), [standing("set")])["failures"][0]
    assert "it was decoded with num_beams 1" in failure["message"]
    fewer = {"base": [make_dataset("set", *BETTER, skip=(1,))]}
    assert checks(build_wer("mrg_1", "succeeded", merge, fewer), loose) == [("set", "complete")]


def test_a_set_without_reference_words_never_passes(make_dataset) -> None:
    silent = [make_dataset("set", ("", ""))]
    document = build_wer("mrg_1", "succeeded", silent, {"base": silent})
    gate = {"max_wer": 1.0, "max_regression": 1.0}
    assert checks(document, gate) == [("set", "max_wer"), ("set", "max_regression")]


@pytest.mark.parametrize(
    "gate",
    [
        {},
        {"max_wer": "0.1"},
        {"max_wer": True},
        {"max_wer": {"a": None}},
        {"max_were": 1},
        {"max_wer": 10},
    ],
)
def test_an_empty_gate_is_refused(gate: dict) -> None:
    with pytest.raises(ValidationError):
        GateSpec.model_validate(gate)


@pytest.mark.parametrize("status", ["succeeded", "partial", "failed", "cancelled"])
def test_an_evaluation_without_a_verdict_never_passes(status: str) -> None:
    found = unfinished(GateSpec(max_wer=0.1), status)
    assert found["passed"] is False
    assert found["failures"]


LOOP = "obrigado " * 40
MADE_UP = (("um dois", "um dois"), ("", "legendas por alguém"), ("três", LOOP), ("", ""))


def test_loops_and_words_on_silence_are_counted_and_limited(make_dataset) -> None:
    document = build_wer("mrg_1", "succeeded", [make_dataset("set", *MADE_UP)], {})
    assert document["datasets"][0]["hallucinations"] == {
        "silent_utterances": 2,
        "words_on_silence": 3,
        "loops": 1,
        "loop_rate": 0.25,
    }
    assert checks(document, {"max_loops": 0.25, "max_words_on_silence": 3}) == []
    assert checks(document, {"max_loops": {"set": 0.2}}) == [("set", "max_loops")]
    assert checks(document, {"max_words_on_silence": 2}) == [("set", "max_words_on_silence")]
    gate = GateSpec.model_validate({"max_loops": 0, "max_words_on_silence": {"*": 0}})
    loops, words = judge(document, gate, [standing("set")])["failures"]
    assert loops["message"] == (
        "set: 1 of 4 transcripts repeat themselves (25.00 %), 0.00 % are allowed"
    )
    assert (loops["value"], loops["limit"]) == (0.25, 0)
    assert words["message"] == "set: 3 words were transcribed in 2 silent utterances, 0 are allowed"


def test_a_reference_that_normalises_to_nothing_is_silence(make_dataset) -> None:
    noise = make_dataset("set", ("[ruído]", "obrigado a todos"), ("(música) ...", ""))
    [dataset] = build_wer("mrg_1", "succeeded", [noise], {})["datasets"]
    assert dataset["wer"] is None
    found = dataset["hallucinations"]
    assert (found["silent_utterances"], found["words_on_silence"]) == (2, 3)


def test_hallucinations_are_in_the_table_and_the_csv(make_dataset) -> None:
    loud = [make_dataset("set", *MADE_UP)]
    document = build_wer("mrg_1", "succeeded", loud, {"base": loud})
    told = "set: 1 transcripts repeat themselves (25.00 %), 3 words in 2 silent utterances"
    assert f"! base on {told}" in render_table(document)
    assert f"! mrg_1 on {told}" in render_table(document)
    first = next(csv.DictReader(io.StringIO(render_csv(document))))
    names = ("loops", "loop_rate", "words_on_silence", "silent_utterances")
    assert [first[name] for name in names] == ["1", "0.25", "3", "2"]


@pytest.mark.parametrize(
    "gate",
    [{"max_loops": 10}, {"max_loops": -0.1}, {"max_words_on_silence": 0.5}, {"max_loops": {}}],
)
def test_invalid_limits_are_refused(gate: dict) -> None:
    with pytest.raises(ValidationError):
        GateSpec.model_validate(gate)
