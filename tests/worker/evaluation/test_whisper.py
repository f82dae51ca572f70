"""Our decoder finds the tokens of transformers' `generate`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from app.contract.evaluation import DecodingOptions
from tests.worker.evaluation.conftest import build_checkpoint
from tests.worker.evaluation.test_decoding import edit_json
from worker.evaluation.whisper.decoding import SpeechDecoder
from worker.evaluation.whisper.kv_cache import KeyValueCache

SAMPLES = Path(__file__).parents[3] / "samples"
Sounds = list[np.ndarray]


@pytest.fixture(scope="module")
def digits() -> Sounds:
    """Digit strings in noise: words and word counts differ, so that some are finished early."""
    names = sorted((SAMPLES / "speech/street").rglob("*.flac"))[:8]
    return [soundfile.read(name, dtype="float32")[0] for name in names]


@pytest.fixture
def speech(make_sound: Callable[..., np.ndarray]) -> Sounds:
    return [make_sound(0.3 + 0.25 * n, pitch=100 + 55 * n) for n in range(6)]


def decoder(checkpoint: Path, num_beams: int, task: str = "transcribe") -> SpeechDecoder:
    options = DecodingOptions.model_validate({"num_beams": num_beams, "task": task})
    return SpeechDecoder(checkpoint, "cpu", "float32", options)


def both(
    decoder: SpeechDecoder, speech: Sounds, language: str | None = None
) -> tuple[list[list[int] | None], list[list[int]]]:
    """Return the own tokens and those of `generate`."""
    inputs = decoder._features(speech, max_length=decoder.window_samples, padding="max_length")
    spoken = decoder._spoken(language)
    assert decoder.transcriber is not None
    with torch.inference_mode():
        own, _ = decoder.transcriber.transcribe(
            inputs.input_features, language=spoken.get("language"), task=spoken.get("task")
        )
        theirs = decoder.model.generate(
            inputs.input_features,
            attention_mask=inputs.attention_mask,
            generation_config=decoder.generation,
            return_timestamps=False,
            **spoken,
        ).tolist()
    end = decoder.generation.eos_token_id
    return own, [said[: said.index(end)] if end in said else said for said in theirs]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_a_trained_model_decodes_equally(digits: Sounds, num_beams: int, batch: int) -> None:
    own, theirs = both(decoder(SAMPLES / "checkpoints/base", num_beams), digits[-batch:])
    assert own == theirs
    assert batch < 8 or len({len(said) for said in theirs}) > 1


@pytest.mark.parametrize("num_beams", [1, 2, 5, 20])
def test_the_longest_transcript_is_decoded_equally(
    english: Path, speech: Sounds, num_beams: int
) -> None:
    one = decoder(english, num_beams)
    own, theirs = both(one, speech)
    assert own == theirs
    prompt = ("<|startoftranscript|>", "<|notimestamps|>")
    assert max(map(len, theirs)) == one.model.config.max_target_positions - len(prompt)


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("language", ["pt", "en", None])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_languages_and_tasks_are_decoded_equally(
    multilingual: Path, speech: Sounds, num_beams: int, language: str | None, task: str
) -> None:
    one = decoder(multilingual, num_beams, task)
    texts = one.decode(speech, language)
    one.transcriber = None
    assert texts == one.decode(speech, language)


def test_both_backends_detect_equally(multilingual: Path, speech: Sounds) -> None:
    one = decoder(multilingual, 2)
    sounds = [one.sound(samples) for samples in speech]
    own = one.transcribe(sounds)
    one.transcriber = None
    assert own == one.transcribe(sounds)
    assert {found.detected_language for found in own} <= {"en", "pt"}


@pytest.mark.parametrize(
    "settings",
    [
        {"length_penalty": 0.0},
        {"length_penalty": 2.5},
        {"length_penalty": -1.0},
        {"early_stopping": True},
        {"early_stopping": "never"},
        {"early_stopping": "never", "length_penalty": -1.0},
        {"max_length": 2},
        {"max_length": None, "max_new_tokens": 3},
        {"max_new_tokens": 24},
        {"no_speech_threshold": 0.6, "num_beam_groups": 3, "forced_decoder_ids": [[1, 260]]},
        {"max_length": 4, "suppress_tokens": [259, 261, 262]},
        {"suppress_tokens": [256, 260, 100_000, -1], "begin_suppress_tokens": [220, 257]},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_checkpoints_own_settings_are_obeyed(
    digits: Sounds, tmp_path: Path, settings: dict[str, object], num_beams: int
) -> None:
    folder = shutil.copytree(SAMPLES / "checkpoints/telephone", tmp_path / "own")
    edit_json(folder / "generation_config.json", **settings)
    own, theirs = both(decoder(folder, num_beams), digits)
    assert own == theirs


@pytest.mark.parametrize("own", [{"language": "pt"}, {"task": "translate"}], ids=str)
def test_the_checkpoint_does_not_override_the_callers_defaults(
    multilingual: Path, speech: Sounds, tmp_path: Path, own: dict[str, str]
) -> None:
    folder = shutil.copytree(multilingual, tmp_path / "own")
    edit_json(folder / "generation_config.json", **own)
    one = decoder(folder, 1)
    # What `generate` fills in where it is told None.
    assert not any(getattr(one.model.generation_config, name, None) for name in own)
    texts = one.decode(speech, None)
    one.transcriber = None
    assert texts == one.decode(speech, None) == decoder(multilingual, 1).decode(speech, None)


@pytest.mark.parametrize("seed", range(1, 5))
def test_any_weights_are_decoded_equally(tmp_path: Path, speech: Sounds, seed: int) -> None:
    folder = build_checkpoint(tmp_path / "any", multilingual=False, timestamps=False, seed=seed)
    for num_beams in (1, 5):
        own, theirs = both(decoder(folder, num_beams), speech)
        assert own == theirs


@pytest.mark.parametrize("num_beams", [1, 3])
def test_nan_weights_end_the_search(digits: Sounds, tmp_path: Path, num_beams: int) -> None:
    one = decoder(SAMPLES / "checkpoints/base", num_beams)
    one.model.model.decoder.layer_norm.weight.data.fill_(float("nan"))
    assert len(one.decode(digits)) == len(digits)


def test_windows_that_the_model_divides_are_left_to_transformers(
    multilingual: Path, speech: Sounds
) -> None:
    one = decoder(multilingual, 4)
    assert one.transcriber is not None
    features = one._features(speech, max_length=one.window_samples, padding="max_length")
    with torch.inference_mode():
        assert None in one.transcriber.transcribe(features.input_features, "en", "transcribe")[0]
    assert all(isinstance(text, str) for text in one.decode(speech, "en"))


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("generation_config.json", {"repetition_penalty": 1.3}),
        ("generation_config.json", {"no_repeat_ngram_size": 2}),
        ("generation_config.json", {"min_new_tokens": 5}),
        ("generation_config.json", {"bad_words_ids": [[3], [5, 7]]}),
        ("generation_config.json", {"eos_token_id": [260, 294]}),
        ("generation_config.json", {"renormalize_logits": True}),
        ("config.json", {"activation_function": "relu"}),
    ],
    ids=str,
)
def test_unsupported_searches_are_left_to_transformers(
    digits: Sounds, tmp_path: Path, file: str, settings: dict[str, object]
) -> None:
    folder = shutil.copytree(SAMPLES / "checkpoints/base", tmp_path / "other")
    assert decoder(folder, 2).backend == "afluente"
    edit_json(folder / file, **settings)
    one = decoder(folder, 2)
    assert (one.backend, one.transcriber) == ("transformers", None)
    assert len(one.decode(digits)) == len(digits)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_openais_models_are_decoded_by_our_search(
    digits: Sounds, tmp_path: Path, num_beams: int
) -> None:
    folder = shutil.copytree(SAMPLES / "checkpoints/base", tmp_path / "official")
    plain = decoder(folder, num_beams).decode(digits)
    forced: dict[str, object] = {"forced_decoder_ids": [[1, 298]], "begin_suppress_tokens": [1]}
    edit_json(folder / "config.json", **forced)
    one = decoder(folder, num_beams)
    assert one.backend == "afluente"
    assert one.decode(digits) == plain
    one.transcriber = None
    assert one.decode(digits) == plain


def test_the_encoder_equals_transformers(english: Path, speech: Sounds) -> None:
    one = decoder(english, 1)
    features = one._features(speech, max_length=one.window_samples, padding="max_length")
    assert one.transcriber is not None
    with torch.inference_mode():
        expected = one.model.model.encoder(features.input_features).last_hidden_state
        heard = [one.transcriber.encoder.encode(item) for item in features.input_features]
    torch.testing.assert_close(torch.stack(heard), expected, rtol=1e-4, atol=1e-4)


def test_selecting_slots_of_the_cache_moves_few_of_them() -> None:
    cache = KeyValueCache(slots=5, layers=1, heads=1, positions=2, size=3)
    cache.cross[:] = torch.arange(5.0)[:, None, None, None]
    cache.reserve(100)
    cache.entries = 1
    cache.past[..., 0, :] = torch.arange(5.0)[:, None, None]
    assert cache.select([0, 2, 4]) == [0, 4, 2]
    assert cache.cross[0, 0, :3, 0, 0, 0].tolist() == [0, 4, 2]
    assert cache.past[0, 1, :3, 0, 0, 0].tolist() == [0, 4, 2]
    assert cache.select([2]) == [2]
    assert (cache.slots, cache.cross[0, 0, 0, 0, 0, 0].item()) == (1, 2)
