"""Encoder-decoders besides Whisper: the texts of transformers' own `generate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

from app.contract.errors import EvaluationFailedError, InvalidCheckpointError
from app.contract.evaluation import DecodingOptions
from app.contract.settings import Settings
from tests.tiny_speech import make_moonshine, make_speech_to_text
from tests.tiny_whisper import WEIGHTS, noisy, variant
from tests.worker.evaluation.conftest import MakeManifest, sound
from worker.evaluation.cache import InMemoryTranscriptCache
from worker.evaluation.families import load, read_facts
from worker.evaluation.runner import evaluate
from worker.evaluation.seq2seq import Seq2SeqDecoder
from worker.merging.local import merge_recipe

Speech = list[np.ndarray]


@pytest.fixture(scope="module")
def moonshine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_moonshine(tmp_path_factory.mktemp("moonshine"))


@pytest.fixture(scope="module")
def speech() -> Speech:
    return [sound(0.4 + 0.7 * n, pitch=110 + 60 * n) for n in range(3)]


def decoder(folder: Path, num_beams: int = 1) -> Seq2SeqDecoder:
    found = load(folder, "cpu", "float32", DecodingOptions(num_beams=num_beams))
    assert isinstance(found, Seq2SeqDecoder)
    return found


def texts(one: Seq2SeqDecoder, speech: Speech) -> list[str]:
    return [found.text for found in one.transcribe([one.sound(samples) for samples in speech])]


@torch.inference_mode()
def theirs(folder: Path, speech: Speech, num_beams: int) -> list[str]:
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    found = []
    for samples in speech:
        inputs = processor(
            samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
        )
        tokens = model.generate(**inputs, num_beams=num_beams, do_sample=False)
        found += processor.batch_decode(tokens, skip_special_tokens=True)
    return found


@pytest.fixture(scope="module")
def speech_to_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech_to_text(tmp_path_factory.mktemp("speech_to_text"))


@pytest.fixture(params=["moonshine", "speech_to_text"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("num_beams", [1, 3])
def test_texts_are_those_of_generate(checkpoint: Path, speech: Speech, num_beams: int) -> None:
    found = texts(decoder(checkpoint, num_beams), speech)
    assert found == theirs(checkpoint, speech, num_beams)
    assert len(set(found)) > 1


def test_assigned_weights_decode_as_loaded_ones(
    checkpoint: Path, speech: Speech, tmp_path: Path
) -> None:
    expert = variant(checkpoint, tmp_path / "expert", noisy(1, size=0.2))
    one = decoder(checkpoint)
    before = texts(one, speech)
    one.assign(load_file(expert / WEIGHTS))
    assert texts(one, speech) == texts(decoder(expert), speech) != before


def test_a_merge_is_decoded_as_generate_does(
    checkpoint: Path, speech: Speech, tmp_path: Path
) -> None:
    experts = [variant(checkpoint, tmp_path / f"e{k}", noisy(k, size=0.1)) for k in (1, 2)]
    recipe = {"base": str(checkpoint), "checkpoints": list(map(str, experts)), "method": "iso_c"}
    made = merge_recipe(recipe, tmp_path / "merge", Settings(data_dir=tmp_path, device="cpu"))
    assert made.sources["architecture"]["task"] == "seq2seq"
    assert texts(decoder(made.folder), speech) == theirs(made.folder, speech, 1)


def test_a_speech_to_text_that_translates_is_refused(speech_to_text: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(speech_to_text, tmp_path / "translating")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lang_codes": "mustc"}))
    with pytest.raises(InvalidCheckpointError, match="lang_codes, of a model that translates"):
        read_facts(folder)


def test_audio_beyond_the_window_is_skipped_with_the_way_out(
    moonshine: Path, make_manifest: MakeManifest
) -> None:
    manifest = make_manifest(0.5, 30.5)
    cache = InMemoryTranscriptCache()
    result = evaluate(moonshine, "key", manifest, DecodingOptions(), cache, device="cpu")
    (skipped,) = result.skipped
    assert "30.50 s of audio; MoonshineForConditionalGeneration hears at most" in skipped.reason
    assert "divide the recording in the manifest" in skipped.reason
    assert (result.decoding.search, result.decoding.num_beams) == ("beam", 5)
    assert result.decoding.checkpoint_settings == {"max_new_tokens": "19"}
    with pytest.raises(EvaluationFailedError, match="no timestamps"):
        decoder(moonshine).decode_long(sound(31))


@pytest.mark.parametrize(
    ("name", "field", "value", "reason"),
    [
        ("generation_config.json", "guidance_scale", 3, "guidance_scale, which no search"),
        ("generation_config.json", "eos_token_id", 10**6, "eos_token_id 1000000; the vocabulary"),
        ("config.json", "max_position_embeddings", "many", "max_position_embeddings 'many'"),
    ],
)
def test_settings_that_no_search_obeys_are_refused_by_name(
    moonshine: Path, tmp_path: Path, name: str, field: str, value: object, reason: str
) -> None:
    folder = shutil.copytree(moonshine, tmp_path / "wrong")
    document = json.loads((folder / name).read_text()) | {field: value}
    (folder / name).write_text(json.dumps(document))
    with pytest.raises(InvalidCheckpointError, match=reason):
        read_facts(folder)
