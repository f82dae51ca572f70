from __future__ import annotations

import pytest

from app.contract.evaluation import DecodingRecord
from app.reports.comparison import compare, difference
from app.reports.scored import score_dataset

PAIRS = (("um dois três", "um dois"), ("quatro cinco", "quatro cinco"), ("seis", "seis sete"))
BETTER = (("um dois três", "um dois três"), *PAIRS[1:])


def test_the_difference_is_tested_and_drawn(make_dataset) -> None:
    merged, base = (score_dataset(make_dataset("set", *pairs)) for pairs in (BETTER, PAIRS))
    found = difference(merged, base)
    assert (found["wer"], found["delta"]) == pytest.approx((2 / 6, -1 / 6))
    assert found["delta_ci95"]["low"] < -1 / 6 < found["delta_ci95"]["high"] == 0.0
    assert (found["utterances"], found["segments"]) == (3, 2)
    # Differences of -1 and 0 in two segments: z = -1.
    assert found["mapsswe_p"] == pytest.approx(0.3173105)
    assert 0.7 < found["probability_of_improvement"] < 0.95
    back = difference(base, merged)
    assert back["mapsswe_p"] == found["mapsswe_p"]
    assert back["probability_of_improvement"] == pytest.approx(
        1 - found["probability_of_improvement"]
    )


def test_a_system_against_itself_is_no_better_and_no_worse(make_dataset) -> None:
    scored = score_dataset(make_dataset("set", *PAIRS))
    found = difference(scored, scored)
    assert (found["delta"], found["mapsswe_p"], found["probability_of_improvement"]) == (0, 1, 0.5)
    assert found["delta_ci95"] == {"low": 0.0, "high": 0.0}


def test_undefined_values_are_none(make_dataset) -> None:
    one = score_dataset(make_dataset("set", ("um", "um")))
    other = score_dataset(make_dataset("set", ("um", "dois")))
    found = difference(one, other)
    assert found["delta"] == -1.0
    assert found["delta_ci95"] is found["mapsswe_p"] is None
    assert found["probability_of_improvement"] is None
    silent = score_dataset(make_dataset("set", ("", "um"), ("", "")))
    found = difference(silent, silent)
    assert found["wer"] is found["delta"] is found["delta_ci95"] is None


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"num_beams": 1}, "it was decoded with num_beams 1 instead of 5"),
        ({"manifest": "1" * 64}, f"it has a different manifest (sha256 {'1' * 64})"),
        ({"normalizer": "none"}, "its normaliser is none 1"),
        ({"skip": (0, 1, 2)}, "no utterance was decoded by both systems"),
    ],
)
def test_only_comparable_results_are_compared_and_reasons_are_given(
    make_dataset, other: dict, reason: str
) -> None:
    scored = score_dataset(make_dataset("set", *PAIRS))
    differences, reasons = compare(
        scored, {"base": [score_dataset(make_dataset("set", *PAIRS, **other))]}
    )
    assert (differences, reasons) == ({}, {"base": reason})


def test_the_newest_comparable_result_is_compared(make_dataset) -> None:
    scored = score_dataset(make_dataset("set", *PAIRS))
    results = [
        score_dataset(make_dataset("set", *PAIRS)),
        score_dataset(make_dataset("set", *BETTER)),
        score_dataset(make_dataset("set", *PAIRS, num_beams=1)),
        score_dataset(make_dataset("other", *PAIRS, manifest="1" * 64)),
    ]
    differences, reasons = compare(scored, {"base": results, "late": results[3:]})
    assert differences["base"]["delta"] == pytest.approx(1 / 6)
    assert reasons == {"late": "it was not evaluated on this dataset"}


def test_a_renamed_dataset_is_known_by_its_manifest(make_dataset) -> None:
    scored = score_dataset(make_dataset("set", *PAIRS))
    differences, _ = compare(scored, {"base": [score_dataset(make_dataset("before", *BETTER))]})
    assert differences["base"]["delta"] == pytest.approx(1 / 6)


def record(**fields: object) -> dict[str, object]:
    plain = {"num_beams": 1, "language": "pt", "task": "transcribe", "dtype": "float32"}
    return {**plain, **fields}


def why_not(make_dataset, one: dict[str, object], other: dict[str, object]) -> str | None:
    scored = []
    for decoding in (one, other):
        dataset = make_dataset("set", *PAIRS)
        result = dataset.result.model_copy(
            update={"decoding": DecodingRecord.model_validate(decoding)}
        )
        scored.append(score_dataset(dataset.model_copy(update={"result": result})))
    return compare(scored[0], {"other": [scored[1]]})[1].get("other")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (record(backend="afluente"), record(backend="transformers")),
        (record(), record(search="greedy", versions={"torch": "1"}, device_type="cuda")),
        (record(checkpoint_settings={}), record(checkpoint_settings={}, search="greedy")),
        (
            record(checkpoint_settings={"max_new_tokens": "24"}, backend="afluente"),
            record(checkpoint_settings={"max_new_tokens": "24"}, backend="transformers"),
        ),
    ],
    ids=["backend", "before the search was noted", "noted and not", "own settings"],
)
def test_settings_without_effect_on_hypotheses_are_ignored(make_dataset, one, other) -> None:
    assert why_not(make_dataset, one, other) is None


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (
            record(checkpoint_settings={}),
            record(checkpoint_settings={"max_new_tokens": "24"}),
            "it was decoded with max_new_tokens 24 instead of Whisper's default",
        ),
        (
            record(checkpoint_settings={"suppress_tokens": "[3]"}),
            record(checkpoint_settings={}),
            "it was decoded with suppress_tokens Whisper's default instead of [3]",
        ),
        (
            record(checkpoint_settings={}),
            record(checkpoint_settings={}, search="temperature_fallback", fallback={}),
            "it was decoded with search temperature_fallback",
        ),
        (
            record(checkpoint_settings={}),
            record(),
            "its result is from before the checkpoint's settings were recorded",
        ),
    ],
    ids=["limit", "suppressed", "search", "not recorded"],
)
def test_settings_that_change_hypotheses_are_named(make_dataset, one, other, said) -> None:
    found = why_not(make_dataset, one, other)
    assert found is not None
    assert found.startswith(said)
