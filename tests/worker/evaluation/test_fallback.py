"""Temperature fallback: OpenAI's rules, seeded by the audio, independent of the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import GenerationConfig

from app.contract.evaluation import DecodingOptions, Fallback
from worker.evaluation.cache import InMemoryTranscriptCache
from worker.evaluation.runner import evaluate
from worker.evaluation.whisper.decoding import SpeechDecoder
from worker.evaluation.whisper.fallback import until_end
from worker.evaluation.whisper.processing import until_cut

SAMPLES = Path(__file__).parents[3] / "samples"
FALLBACK = DecodingOptions(num_beams=1, search="temperature_fallback")


def decoder(checkpoint: Path, **rules: float) -> SpeechDecoder:
    one = SpeechDecoder(checkpoint, "cpu", "float32", FALLBACK)
    assert one.fallback is not None
    one.fallback.rules = Fallback.model_validate(rules)
    return one


@pytest.fixture
def speech(make_sound) -> list[np.ndarray]:
    return [make_sound(0.4 + 0.3 * n, pitch=110 + 60 * n) for n in range(3)]


def test_a_good_hypothesis_is_kept() -> None:
    names = sorted((SAMPLES / "speech/telephone").rglob("*.flac"))[:4]
    digits = [soundfile.read(name, dtype="float32")[0] for name in names]
    checkpoint = SAMPLES / "checkpoints/telephone"
    plain = SpeechDecoder(checkpoint, "cpu", "float32", DecodingOptions(num_beams=1)).decode(digits)
    assert decoder(checkpoint).decode(digits) == plain


def test_an_unlikely_hypothesis_is_sampled_equally_in_any_batch(
    multilingual: Path, speech: list[np.ndarray]
) -> None:
    # Random weights guess: nothing reaches a mean of 0, and so the last temperature is taken.
    one = decoder(multilingual, logprob=0.0, no_speech=1.0)
    plain = SpeechDecoder(multilingual, "cpu", "float32", DecodingOptions(num_beams=1))
    together = one.decode(speech, "pt")
    assert together != plain.decode(speech, "pt")
    torch.manual_seed(7)
    assert [one.decode([sound], "pt")[0] for sound in speech] == together
    assert one.decode(speech[::-1], "pt") == together[::-1]


def test_an_unlikely_hypothesis_in_silence_is_empty(
    multilingual: Path, speech: list[np.ndarray]
) -> None:
    one = decoder(multilingual, logprob=0.0, no_speech=0.0)
    assert one.decode(speech, None) == [""] * len(speech)
    assert one.decode_long(np.tile(speech[0], 8), "pt").text == ""


def test_a_loop_is_sampled_again(multilingual: Path, speech: list[np.ndarray]) -> None:
    one = decoder(multilingual, logprob=-1e9, compression_ratio=0.0)
    plain = SpeechDecoder(multilingual, "cpu", "float32", DecodingOptions(num_beams=1))
    assert one.decode(speech, "en") != plain.decode(speech, "en")


def test_long_audio_falls_back_window_by_window(multilingual: Path, make_sound) -> None:
    one = decoder(multilingual, logprob=0.0, no_speech=1.0)
    windows: list[int] = []
    text = one.decode_long(make_sound(7.3), "pt", on_window=lambda: windows.append(1))
    assert len(windows) >= 4
    assert one.decode_long(make_sound(7.3), "pt") == text


@torch.inference_mode()
def test_the_mean_log_probability_is_that_of_generates_own_scores(
    english: Path, speech: list[np.ndarray]
) -> None:
    one = decoder(english)
    assert one.fallback is not None
    inputs = one._features(speech[:1], max_length=one.window_samples, padding="max_length")
    config = GenerationConfig.from_dict(one.generation.to_dict())
    config.update(return_dict_in_generate=True, output_scores=True)
    found = one.model.generate(
        inputs.input_features, generation_config=config, force_unique_generate_call=True
    )
    scores = torch.stack(found.scores)[:, 0].log_softmax(-1)
    said = found.sequences[0, -len(scores) :].tolist()
    expected = float(scores.gather(1, torch.tensor(said)[:, None]).mean())
    encoded = one.model.get_encoder()(inputs.input_features)
    prompt = [one.facts.start, one.facts.no_timestamps]
    tokens = until_end(said, one.facts.ends)
    measured = one.fallback._mean_logprob(encoded, prompt, tokens)
    assert measured == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("said", "kept", "frames"),
    [
        ([1, 2, 3], [1, 2, 3], 200),
        ([10, 1, 20], [10, 1, 20], 200),
        ([10, 1, 20, 20, 2, 60], [10, 1, 20, 20, 2, 60], 200),
        ([10, 1, 20, 20, 2, 3], [10, 1, 20], 20),
        ([10, 10, 2], [10], 200),
    ],
)
def test_a_window_goes_on_where_its_last_pair_of_timestamps_is(
    said: list[int], kept: list[int], frames: int
) -> None:
    assert until_cut(said, 10, 200) == (kept, frames)


def test_fallback_is_recorded_and_cached_separately(english: Path, make_manifest) -> None:
    manifest, cache = make_manifest(0.5), InMemoryTranscriptCache()
    how = [DecodingOptions(num_beams=1), FALLBACK]
    plain, other = (
        evaluate(english, "key", manifest, options, cache, device="cpu").decoding for options in how
    )
    assert (plain.search, plain.fallback) == ("greedy", None)
    assert (other.search, other.fallback) == ("temperature_fallback", Fallback())
    assert len(cache.transcripts) == 2
    assert plain.settings != other.settings
