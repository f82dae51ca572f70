from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.contract.evaluation import DatasetSpec, EvaluationSpec, Utterance
from app.contract.studies import DevelopmentSpec

DATASET = {"name": "parliament", "uri": "file:///data/parliament.jsonl"}
MERGE = "merge://mrg_01J00000000000000000000000"


def spec(**fields: object) -> EvaluationSpec:
    return EvaluationSpec.model_validate({"datasets": [DATASET], **fields})


def test_defaults_are_the_papers_setting() -> None:
    evaluation = spec()
    assert (evaluation.num_beams, evaluation.batch_size, evaluation.normalizer) == (5, 16, "basic")
    assert evaluation.compare_with == ("base", "checkpoints")
    assert evaluation.datasets[0].group == "other"


def test_a_preset_is_stored_as_the_fields_it_stands_for() -> None:
    found = spec(preset="open_asr", num_beams=5)
    assert (found.normalizer, found.language, found.batch_size) == ("open_asr", "en", 64)
    assert found.num_beams == 5
    stored = found.model_dump(mode="json")
    assert "preset" not in stored
    assert EvaluationSpec.model_validate(stored) == found
    line = Utterance(index=0, audio="a", reference="x", language="de")
    assert found.decoding_of(found.datasets[0]).language_of(line) == "de"
    assert DevelopmentSpec(datasets=[DATASET], preset="open_asr").normalizer == "open_asr"


@pytest.mark.parametrize(
    "fields",
    [
        {"preset": "open-asr"},
        {"preset": ["open_asr"]},
        {"datasets": []},
        {"datasets": [DATASET] * 2},
        {"datasets": [DATASET | {"name": "../etc"}]},
        {"datasets": [DATASET | {"name": "=cmd()"}]},
        {"datasets": [DATASET | {"uri": ""}]},
        {"datasets": [DATASET | {"group": "ID"}]},
        {"datasets": [DATASET | {"name": f"set-{n}"} for n in range(65)]},
        {"num_beams": 0},
        {"num_beams": 21},
        {"batch_size": 0},
        {"language": "portuguese"},
        {"language": 5},
        {"task": "translation"},
        {"normalizer": "fancy"},
        {"compare_with": ["merge://../x"]},
        {"compare_with": ["experts"]},
        {"beams": 5},
    ],
)
def test_values_out_of_bounds_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        spec(**fields)


def test_duplicate_comparisons_are_removed_in_order() -> None:
    assert spec(compare_with=[MERGE, "base", MERGE]).compare_with == (MERGE, "base")


def test_regions_are_removed_from_language_codes() -> None:
    assert spec(language="pt-PT").language == "pt"
    assert spec(language="PT_br").language == "pt"


def test_a_datasets_language_precedes_its_manifests() -> None:
    evaluation = spec(
        language="pt",
        datasets=[DATASET, DATASET | {"name": "b", "language": "en", "normalizer": "english"}],
    )
    plain, english = (evaluation.decoding_of(dataset) for dataset in evaluation.datasets)
    spanish = Utterance(index=0, audio="a.wav", reference="", language="es")
    silent = Utterance(index=0, audio="a.wav", reference="")
    assert (plain.language_of(spanish), plain.language_of(silent)) == ("es", "pt")
    assert english.language_of(spanish) == "en"
    assert evaluation.normalizer_of(evaluation.datasets[1]) == "english"
    assert evaluation.normalizer_of(evaluation.datasets[0]) == "basic"


def test_every_field_of_a_request_is_described() -> None:
    for model in (DatasetSpec, EvaluationSpec):
        properties = model.model_json_schema()["properties"]
        assert all("description" in schema for schema in properties.values())
