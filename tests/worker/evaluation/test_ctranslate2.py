"""Decoding in CTranslate2, compared with transformers' search on a trained checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.contract.errors import EvaluationFailedError, InvalidCheckpointError
from app.contract.evaluation import DatasetResult, DecodingOptions, EvaluationSpec
from app.contract.formats import Backend
from app.contract.studies import DevelopmentSpec
from app.sources.manifests import Manifest, read_manifest
from tests.tiny_whisper import variant
from tests.worker.evaluation.conftest import build_checkpoint
from worker.evaluation.cache import InMemoryTranscriptCache
from worker.evaluation.families import load, read_facts
from worker.evaluation.runner import evaluate

SAMPLES = Path(__file__).resolve().parents[3] / "samples"
BASE = SAMPLES / "checkpoints" / "base"
COUNT = 24


@pytest.fixture(scope="module")
def digits() -> Manifest:
    """Recordings of spoken digits, of which the checkpoint knows the words."""
    path = SAMPLES / "speech" / "clean" / "manifest.jsonl"
    found = read_manifest(path, label="digits")
    return replace(found, utterances=found.utterances[:COUNT])


def decoded(manifest: Manifest, backend: Backend, **options: Any) -> DatasetResult:
    how = DecodingOptions(backend=backend, **{"num_beams": 1, **options})
    return evaluate(BASE, "key", manifest, how, InMemoryTranscriptCache(), device="cpu")


def texts(result: DatasetResult) -> list[str]:
    return [utterance.hypothesis for utterance in result.utterances]


@pytest.mark.parametrize("num_beams", [1, 5])
def test_float32_finds_what_transformers_finds(digits: Manifest, num_beams: int) -> None:
    expected = texts(decoded(digits, "default", num_beams=num_beams))
    assert len(set(expected)) > COUNT // 2
    assert texts(decoded(digits, "ctranslate2_float32", num_beams=num_beams)) == expected
    assert texts(decoded(digits, "ctranslate2_float16", num_beams=num_beams)) == expected


def test_results_name_the_runtime_its_version_and_quantisation_and_are_not_mixed(
    digits: Manifest,
) -> None:
    own, int8 = decoded(digits, "default").decoding, decoded(digits, "ctranslate2_int8").decoding
    assert (int8.backend, int8.dtype, int8.search) == ("ctranslate2_int8", "float32", "greedy")
    assert int8.versions.keys() - own.versions.keys() == {"ctranslate2"}
    assert int8.settings == own.settings | {"backend": "ctranslate2_int8"}


def test_each_format_has_transcripts_of_its_own(digits: Manifest) -> None:
    cache = InMemoryTranscriptCache()
    for backend in ("default", "ctranslate2_float32", "ctranslate2_int8"):
        how = DecodingOptions(num_beams=1, backend=backend)
        for cached in (False, True):
            result = evaluate(BASE, "key", digits, how, cache, device="cpu")
            assert {utterance.cached for utterance in result.utterances} == {cached}


def test_languages_and_tasks_are_told_as_transformers_tells_them(
    tmp_path: Path, make_sound: Any
) -> None:
    """Random weights: the text depends on every token of the prompt."""
    folder = build_checkpoint(tmp_path / "random", multilingual=True, timestamps=False)
    speech = [make_sound(1.0), make_sound(1.5, pitch=150)]
    found = {}
    for language in ("en", "pt"):
        for task in ("transcribe", "translate"):
            options = DecodingOptions(num_beams=1, task=task)
            plain = load(folder, "cpu", "float32", options)
            how = options.model_copy(update={"backend": "ctranslate2_float32"})
            other = load(folder, "cpu", "float32", how)
            sounds = [plain.sound(samples) for samples in speech]
            found[language, task] = other.transcribe(sounds, language)
            assert found[language, task] == plain.transcribe(sounds, language)
    assert len(set(map(tuple, found.values()))) > 1
    with pytest.raises(EvaluationFailedError, match='does not know the language "de"'):
        other.transcribe(sounds, "de")
    with pytest.raises(EvaluationFailedError, match="say the language"):
        other.transcribe(sounds)


def test_long_audio_is_decoded_window_by_window_and_can_be_stopped(
    multilingual: Path, make_sound: Any
) -> None:
    options = DecodingOptions(num_beams=1, backend="ctranslate2_float32")
    one, windows = load(multilingual, "cpu", "float32", options), []
    samples = make_sound(5.0)
    text = one.decode_long(samples, "pt", on_window=lambda: windows.append(1))
    assert text == one.decode_long(samples, "pt")
    assert text.text
    assert len(windows) >= 3  # of 2 s

    def stop() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        one.decode_long(samples, "pt", on_window=stop)


def test_the_checkpoints_own_limits_and_suppressed_tokens_are_obeyed(
    digits: Manifest, tmp_path: Path
) -> None:
    checkpoint = variant(BASE, tmp_path / "base", lambda _, tensor: tensor)
    document = json.loads((BASE / "generation_config.json").read_bytes())
    common = texts(decoded(digits, "default"))
    first = load(BASE, "cpu", "float32", DecodingOptions(num_beams=1)).tokenizer
    begun = sorted({first(" " + text, add_special_tokens=False).input_ids[0] for text in common})
    changed = document | {"max_length": 9, "begin_suppress_tokens": begun}
    (checkpoint / "generation_config.json").write_text(json.dumps(changed))
    for backend in ("default", "ctranslate2_float32"):
        how = DecodingOptions(num_beams=1, backend=backend)
        result = evaluate(checkpoint, "other", digits, how, InMemoryTranscriptCache())
        if backend == "default":
            expected = texts(result)
            assert expected != common
        assert texts(result) == expected


def test_what_the_runtime_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    datasets = [{"name": "digits", "uri": "digits"}]
    fallback = {"search": "temperature_fallback", "backend": "ctranslate2_int8"}
    with pytest.raises(ValidationError, match="ctranslate2_int8 has no temperature_fallback"):
        EvaluationSpec.model_validate({"datasets": datasets, **fallback})
    with pytest.raises(ValidationError, match="decoded in memory"):
        DevelopmentSpec.model_validate({"datasets": datasets, "backend": "ctranslate2_int8"})
    checkpoint = variant(BASE, tmp_path / "base", lambda _, tensor: tensor)
    document = json.loads((BASE / "generation_config.json").read_bytes())
    (checkpoint / "generation_config.json").write_text(json.dumps(document | {"min_length": 7}))
    with pytest.raises(InvalidCheckpointError, match="sets min_new_tokens, which CTranslate2"):
        read_facts(checkpoint, "ctranslate2_int8")
    one = load(BASE, "cpu", "float32", DecodingOptions(backend="ctranslate2_int8"))
    with pytest.raises(EvaluationFailedError, match="not merges in memory"):
        one.assign({})
