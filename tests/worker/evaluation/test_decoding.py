from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from app.contract.errors import EvaluationFailedError, InvalidCheckpointError
from app.contract.evaluation import DecodingOptions
from app.contract.settings import Settings
from tests.tiny_whisper import noisy, variant
from tests.worker.evaluation.conftest import build_checkpoint
from worker.evaluation.whisper.checkpoint import read_facts
from worker.evaluation.whisper.decoding import SpeechDecoder
from worker.merging.local import merge_recipe

Sounds = list[np.ndarray]


@pytest.fixture
def speech(make_sound: Callable[..., np.ndarray]) -> Sounds:
    return [make_sound(0.4 + 0.3 * n, pitch=110 + 60 * n) for n in range(5)]


def decoder(checkpoint: Path, **options: object) -> SpeechDecoder:
    return SpeechDecoder(checkpoint, "cpu", "float32", DecodingOptions.model_validate(options))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_texts_are_those_of_generate(english: Path, speech: Sounds, num_beams: int) -> None:
    processor = WhisperProcessor.from_pretrained(english)
    model = WhisperForConditionalGeneration.from_pretrained(english, dtype=torch.float32).eval()
    features = processor(
        speech, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    tokens = model.generate(**features, num_beams=num_beams, do_sample=False)
    expected = [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
    texts = decoder(english, num_beams=num_beams).decode(speech)
    assert texts == [text.replace("\0", "").strip() for text in expected]
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"encoder_layers": 3, "decoder_layers": 1}, id="distil-whisper"),
        pytest.param({"encoder_layers": 3, "num_mel_bins": 128}, id="large-v3-turbo"),
    ],
)
def test_distilled_shapes_merge_and_are_decoded_as_generate_does(
    shape: dict[str, int], speech: Sounds, tmp_path: Path
) -> None:
    base = build_checkpoint(tmp_path / "base", multilingual=True, timestamps=True, **shape)
    experts = [variant(base, tmp_path / f"e{k}", noisy(k, size=0.1)) for k in (1, 2)]
    recipe = {"base": str(base), "checkpoints": list(map(str, experts)), "method": "iso_c"}
    settings = Settings(data_dir=tmp_path, device="cpu")
    folder = merge_recipe(recipe, tmp_path / "merge", settings).folder
    processor = WhisperProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    assert (model.config.encoder_layers, model.config.decoder_layers) == (3, 1)
    features = processor(
        speech, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    tokens = model.generate(**features, num_beams=1, do_sample=False, language="pt")
    expected = processor.batch_decode(tokens, skip_special_tokens=True)
    texts = decoder(folder, num_beams=1).decode(speech, "pt")
    assert texts == [text.replace("\0", "").strip() for text in expected]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_decoding_is_deterministic(multilingual: Path, speech: Sounds, num_beams: int) -> None:
    first = decoder(multilingual, num_beams=num_beams).decode(speech, "pt")
    assert decoder(multilingual, num_beams=num_beams).decode(speech, "pt") == first


def test_a_multilingual_checkpoint_takes_language_and_task(
    multilingual: Path, speech: Sounds
) -> None:
    texts = {
        tuple(decoder(multilingual, num_beams=1, task=task).decode(speech, language))
        for task in ("transcribe", "translate")
        for language in ("pt", "en")
    }
    assert len(texts) == 4
    assert len(decoder(multilingual, num_beams=1).decode(speech, None)) == len(speech)


def test_an_english_only_checkpoint_ignores_the_language(english: Path, speech: Sounds) -> None:
    one = decoder(english, num_beams=1)
    assert one.decode(speech, "pt") == one.decode(speech, None)


def test_an_unknown_language_is_refused_by_name(multilingual: Path, speech: Sounds) -> None:
    with pytest.raises(EvaluationFailedError, match='"fi"'):
        decoder(multilingual, num_beams=1).decode(speech, "fi")


def test_long_audio_is_decoded_window_by_window(
    multilingual: Path, make_sound: Callable[..., np.ndarray]
) -> None:
    windows = []
    found = decoder(multilingual, num_beams=1).decode_long(
        make_sound(7.3), "pt", on_window=lambda: windows.append(1)
    )
    assert len(windows) >= 4
    assert "<|" not in found.text


def test_long_audio_stops_when_told(
    multilingual: Path, make_sound: Callable[..., np.ndarray]
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoder(multilingual, num_beams=1).decode_long(make_sound(7.3), "pt", on_window=stop)


def test_audio_longer_than_the_window_is_not_truncated(
    english: Path, make_sound: Callable[..., np.ndarray]
) -> None:
    with pytest.raises(ValueError, match="do not fit the window"):
        decoder(english).decode([make_sound(2.1)])


def test_nothing_is_written_to_stderr(
    english: Path, multilingual: Path, speech: Sounds, capfd: pytest.CaptureFixture[str]
) -> None:
    for checkpoint in (english, multilingual):
        decoder(checkpoint, num_beams=2).decode(speech, "pt")
    decoder(multilingual, num_beams=2).decode_long(np.concatenate(speech), "pt")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_sampling_generation_config_is_overruled(
    english: Path, speech: Sounds, tmp_path: Path
) -> None:
    folder = shutil.copytree(english, tmp_path / "sampling")
    edit_json(folder / "generation_config.json", do_sample=True, temperature=2.0, top_k=5)
    assert decoder(folder, num_beams=1).decode(speech) == decoder(english, num_beams=1).decode(
        speech
    )


def test_a_fine_tuned_checkpoint_with_an_old_generation_config_is_completed(
    multilingual: Path, speech: Sounds, tmp_path: Path
) -> None:
    folder = shutil.copytree(multilingual, tmp_path / "old")
    edit_json(
        folder / "generation_config.json",
        lang_to_id=None,
        task_to_id=None,
        no_timestamps_token_id=None,
    )
    assert read_facts(folder).knows_timestamps
    expected = decoder(multilingual, num_beams=1).decode(speech, "pt")
    assert decoder(folder, num_beams=1).decode(speech, "pt") == expected


def test_a_missing_tensor_is_refused(english: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(english, tmp_path / "missing")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.encoder.layers.0.fc1.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidCheckpointError, match=r"encoder\.layers\.0\.fc1\.weight"):
        decoder(folder)


def test_pickled_weights_are_refused(english: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(english, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidCheckpointError, match="cannot be loaded"):
        decoder(folder)


def test_another_models_feature_extractor_is_refused(english: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(english, tmp_path / "bins")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["feature_extractor"]["feature_size"] = 80
    (folder / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InvalidCheckpointError, match="80 mel bins, but the model needs 40"):
        decoder(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", "\udcff"])
def test_broken_json_is_refused_by_name(
    english: Path, tmp_path: Path, name: str, content: str
) -> None:
    folder = shutil.copytree(english, tmp_path / "broken")
    (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidCheckpointError, match=name):
        read_facts(folder)


def edit_json(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text()) | changes
    kept = {key: value for key, value in document.items() if value is not None}
    path.write_text(json.dumps(kept))
