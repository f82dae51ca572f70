"""Merges of speech models that are not Whisper: error rates, refusals, studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jiwer
import pytest
from transformers import AutoModelForCTC, AutoProcessor
from transformers.pipelines import AutomaticSpeechRecognitionPipeline

from app.contract.errors import InvalidRequestError
from app.contract.evaluation import EvaluationSpec
from app.contract.settings import Settings
from app.storage.leases import JobKind
from tests.tiny_speech import make_ctc
from tests.tiny_whisper import noisy, variant
from tests.worker.test_evaluation_job import Service, service, spec
from worker.evaluation.local import evaluate_checkpoint
from worker.study_local import run_study

__all__ = ["service", "spec"]


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """A merge of two fine-tuned wav2vec2."""
    speech = tmp_path / "speech"
    speech.mkdir(exist_ok=True)
    base = make_ctc(speech / "base", "Wav2Vec2ForCTC")
    experts = [variant(base, speech / f"expert{k}", noisy(k, size=0.1)) for k in (1, 2)]
    return {
        "base": base.as_uri(),
        "checkpoints": [expert.as_uri() for expert in experts],
        "method": "task_arithmetic",
    }


COMPANIONS = ("vocab.json", "tokenizer_config.json", "processor_config.json")


def pipeline(folder: Path, lender: Path | None = None) -> AutomaticSpeechRecognitionPipeline:
    """Return what transformers itself transcribes with; the lender has the processor."""
    processor = AutoProcessor.from_pretrained(lender or folder)
    return AutomaticSpeechRecognitionPipeline(
        model=AutoModelForCTC.from_pretrained(folder).eval(),
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )


def test_rates_of_a_merge_are_those_of_transformers_pipeline(
    service: Service, spec: dict[str, Any], recipe: dict[str, Any], tmp_path: Path
) -> None:
    speech = tmp_path / "speech"
    for name in COMPANIONS:
        (speech / "expert2" / name).unlink()
    answer = service.client.post("/merges", json=recipe | {"evaluation": spec})
    assert answer.status_code == 202, answer.text
    assert [one["code"] for one in answer.json()["warnings"]] == ["companions_from_base"]
    merge_id = answer.json()["id"]
    service.work(JobKind.MERGE, merge_id)
    merge = service.client.get(f"/merges/{merge_id}").json()
    assert merge["architecture"] == {
        "model_type": "wav2vec2",
        "model_class": "Wav2Vec2ForCTC",
        "processor_class": "Wav2Vec2Processor",
        "task": "ctc",
    }
    service.evaluate(merge_id, spec | {"normalizer": "none"})
    url = f"/merges/{merge_id}/wer"
    table = service.client.get(f"{url}?normalizer=none").json()
    (merged,) = (service.settings.data_dir / "artifacts" / "published").iterdir()
    folders = {name: speech / name for name in ("base", "expert1", "expert2")}
    systems = table["systems"] | {"merge": table}
    assert systems.keys() == folders.keys() | {"merge"}
    texts = set()
    for name, system in systems.items():
        scored = service.client.get(f"{url}/utterances?normalizer=none&system={name}").json()[
            "data"
        ]
        theirs = pipeline(folders.get(name, merged), speech / "base")
        expected = [theirs(one["audio"])["text"] for one in scored]
        assert [one["hypothesis"] for one in scored] == [text.strip() for text in expected]
        (dataset,) = system["datasets"]
        assert dataset["wer"] == pytest.approx(
            jiwer.wer([one["reference"] for one in scored], expected), abs=1e-4
        )
        assert dataset["decoding"]["search"] == "greedy"
        texts.add(tuple(expected))
    assert len(texts) == 4


def test_what_ctc_cannot_do_is_refused_by_name_and_what_lacks_files_merges_without_rates(
    service: Service, spec: dict[str, Any], recipe: dict[str, Any], tmp_path: Path
) -> None:
    def refused(url: str, body: dict[str, Any]) -> dict[str | None, str]:
        answer = service.client.post(url, json=body)
        document = answer.json()
        assert (answer.status_code, document["code"]) == (422, "invalid_request"), document
        return {one["param"]: one["message"] for one in document["errors"]}

    asked = spec | {"num_beams": 5, "search": "temperature_fallback", "task": "translate"}
    asked["datasets"] = [{**spec["datasets"][0], "task": "translate"}]
    fields = ("num_beams", "search", "task", "datasets[0].task")
    problems = refused("/merges?dry_run=true", recipe | {"evaluation": asked})
    assert problems.keys() == {f"evaluation.{field}" for field in fields}
    assert "Wav2Vec2ForCTC is decoded greedily" in str(problems["evaluation.num_beams"])
    default = {name: value for name, value in spec.items() if name != "num_beams"}
    answer = service.client.post("/merges?dry_run=true", json=recipe | {"evaluation": default})
    assert answer.status_code == 200, answer.text
    settings = tmp_path / "speech" / "base" / "tokenizer_config.json"
    own = settings.read_text()
    settings.write_text(json.dumps(json.loads(own) | {"tokenizer_class": "PhonemeTokenizer"}))
    problems = refused("/merges", recipe | {"evaluation": spec})
    assert "tokenizer_config.json has tokenizer_class" in str(problems["evaluation"])
    settings.write_text(own)
    (tmp_path / "speech" / "base" / "vocab.json").unlink()
    problems = refused("/merges", recipe | {"evaluation": spec})
    assert "can be merged but not evaluated: it has no tokenizer (vocab.json)" in str(
        problems["evaluation"]
    )
    merge_id = service.client.post("/merges", json=recipe).json()["id"]
    service.work(JobKind.MERGE, merge_id)
    problems = refused(f"/merges/{merge_id}/evaluations", asked)
    assert problems.keys() == {*fields, None}
    assert "it has no tokenizer" in str(problems[None])


def test_the_command_line_decodes_greedily_unless_asked_for_beams(
    spec: dict[str, Any], recipe: dict[str, Any], tmp_path: Path
) -> None:
    base, settings = tmp_path / "speech" / "base", Settings(data_dir=tmp_path, device="cpu")

    def evaluated(**asked: Any) -> dict[str, Any]:
        known = {name: value for name, value in spec.items() if name != "num_beams"}
        wanted = EvaluationSpec.model_validate(known | asked)
        return evaluate_checkpoint(base, wanted, settings, lambda *_: None)

    (dataset,) = evaluated()["datasets"]
    assert dataset["decoding"]["num_beams"] == 1
    with pytest.raises(InvalidRequestError, match="without beams; leave num_beams out"):
        evaluated(num_beams=5)


def test_a_study_merges_trials_into_the_decoders_model(
    spec: dict[str, Any], recipe: dict[str, Any], tmp_path: Path
) -> None:
    # The references are what one of the experts writes, by the letter.
    path = tmp_path / "speech" / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    expert = pipeline(tmp_path / "speech" / "expert1")
    texts = [expert(line["audio_filepath"])["text"] for line in lines]
    changed = [
        line | {"text": text, "language": "zh"} for line, text in zip(lines, texts, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, changed)))
    document = {name: recipe[name] for name in ("base", "checkpoints")} | {
        "candidates": [
            {"method": "task_arithmetic", "parameters": {"scaling_coefficient": [0.5, 1.0]}}
        ],
        "search": {"strategy": "grid"},
        "development": spec | {"normalizer": "none"},
        "keep": 2,
    }
    run_study(document, tmp_path / "study", Settings(device="cpu"), lambda *_: None)
    table = json.loads((tmp_path / "study" / "table.json").read_text())
    rows = table["development"]["rows"]
    rates = {row["key"]: row["sets"]["telephone"]["rate"] for row in rows}
    numbers = {row["number"]: row["key"] for row in rows}
    assert rates["expert1"] == 0 < rates["base"]
    for trial in (0, 1):
        kept = pipeline(tmp_path / "study" / "merges" / f"trial-{trial}")
        found = [kept(line["audio_filepath"])["text"].strip() for line in lines]
        assert rates[numbers[trial]] == pytest.approx(jiwer.cer(texts, found), abs=1e-4)
