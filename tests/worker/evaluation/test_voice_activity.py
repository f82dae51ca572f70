"""Speech in long audio is found by silero-vad itself, in the samples' digit strings."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from app.contract.errors import EvaluationFailedError
from app.contract.evaluation import DecodingOptions
from app.sources.manifests import Manifest, read_manifest
from worker.evaluation import voice_activity as module
from worker.evaluation.cache import InMemoryTranscriptCache
from worker.evaluation.runner import evaluate
from worker.evaluation.voice_activity import find_speech
from worker.evaluation.whisper.decoding import SpeechDecoder

SAMPLES = Path(__file__).parents[3] / "samples"
RATE = 16_000
WINDOW = 2 * RATE
WITH = DecodingOptions(num_beams=1, voice_activity=True, batch_size=2)
WITHOUT = DecodingOptions(num_beams=1, batch_size=2)


@pytest.fixture(scope="module")
def digits() -> list[np.ndarray]:
    names = sorted((SAMPLES / "speech/street").rglob("*.flac"))[:3]
    return [soundfile.read(name, dtype="float32")[0] for name in names]


@pytest.fixture(scope="module")
def spaced(digits: list[np.ndarray]) -> np.ndarray:
    """Three digit strings, each after 3 s of silence, and 3 s of silence at the end."""
    silence = np.zeros(3 * RATE, np.float32)
    return np.concatenate([part for one in digits for part in (silence, one)] + [silence])


def manifest_of(folder: Path, samples: np.ndarray, **fields: object) -> Manifest:
    soundfile.write(folder / "long.wav", samples, RATE)
    line = {"audio_filepath": "long.wav", "text": "um", **fields}
    (folder / "set.jsonl").write_text(json.dumps(line))
    return read_manifest(folder / "set.jsonl", label="set")


def run(checkpoint: Path, manifest: Manifest, options: DecodingOptions, cache=None, **how):
    cache = InMemoryTranscriptCache() if cache is None else cache
    return evaluate(checkpoint, "a" * 64, manifest, options, cache, device="cpu", **how)


def test_stretches_have_the_speech_and_fit_the_window(
    digits: list[np.ndarray], spaced: np.ndarray
) -> None:
    threads = torch.get_num_threads()
    begin = 3 * RATE
    for one in digits:
        [(first, last)] = [
            s for s in find_speech(spaced, WINDOW) if begin <= s[1] <= begin + RATE * 3
        ]
        assert begin - RATE / 2 <= first < last <= begin + len(one) + RATE / 2
        begin += len(one) + 3 * RATE
    assert all(last - first <= WINDOW for first, last in find_speech(spaced, WINDOW))
    # A large window takes neighbours together, from the first word to the last.
    [(first, last)] = find_speech(spaced, len(spaced))
    assert (first > 2 * RATE, last < len(spaced) - 2 * RATE) == (True, True)
    assert find_speech(np.zeros(5 * RATE, np.float32), WINDOW) == []
    assert torch.get_num_threads() == threads


def test_endless_speech_is_cut_at_the_window(digits: list[np.ndarray]) -> None:
    voiced = np.concatenate([one[RATE // 10 : -RATE // 10] for one in digits] * 6)
    stretches = find_speech(voiced, WINDOW)
    assert len(stretches) > 3
    assert all(last - first <= WINDOW for first, last in stretches)


def test_long_audio_is_decoded_where_there_is_speech(
    multilingual: Path, spaced: np.ndarray, tmp_path: Path
) -> None:
    manifest = manifest_of(tmp_path, spaced, language="pt")
    stretches = find_speech(spaced, WINDOW)
    found = run(multilingual, manifest, WITH)
    decoder = SpeechDecoder(multilingual, "cpu", "float32", WITH)
    texts = decoder.decode([spaced[first:last] for first, last in stretches], "pt")
    assert found.utterances[0].hypothesis == " ".join(texts)
    assert len(texts) == 3
    record = found.decoding.voice_activity
    assert record is not None
    assert record.silero_vad == version("silero-vad")
    without = run(multilingual, manifest, WITHOUT).decoding
    assert without.voice_activity is None
    assert found.decoding.settings != without.settings


def test_it_is_part_of_the_key_of_long_audio_only(
    multilingual: Path, spaced: np.ndarray, tmp_path: Path
) -> None:
    cache = InMemoryTranscriptCache()
    long = manifest_of(tmp_path, spaced, language="pt")
    for options in (WITHOUT, WITH, WITH):
        again = run(multilingual, long, options, cache)
    assert (len(cache.transcripts), again.utterances[0].cached) == (2, True)
    short = manifest_of(tmp_path, spaced[:WINDOW], language="pt")
    run(multilingual, short, WITHOUT, cache)
    assert run(multilingual, short, WITH, cache).utterances[0].cached
    assert run(multilingual, short, WITH).decoding.voice_activity is None


def test_the_first_stretch_tells_the_language(
    multilingual: Path, spaced: np.ndarray, tmp_path: Path
) -> None:
    [utterance] = run(multilingual, manifest_of(tmp_path, spaced), WITH).utterances
    first, last = find_speech(spaced, WINDOW)[0]
    decoder = SpeechDecoder(multilingual, "cpu", "float32", WITH)
    [heard] = decoder.transcribe([decoder.sound(spaced[first:last])])
    assert utterance.detected_language == heard.detected_language
    assert utterance.hypothesis.startswith(heard.text)


def test_a_checkpoint_without_timestamps_decodes_long_audio(
    english: Path, spaced: np.ndarray, tmp_path: Path
) -> None:
    manifest = manifest_of(tmp_path, spaced)
    assert run(english, manifest, WITHOUT).status == "failed"
    assert run(english, manifest, WITH).status == "succeeded"
    silent = run(english, manifest_of(tmp_path, np.zeros(5 * RATE, np.float32)), WITH)
    assert silent.utterances[0].hypothesis == ""


def test_without_its_library_it_is_refused(
    english: Path, spaced: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LIBRARY", "silero-vad-of-another-name")
    module.voice_activity.cache_clear()
    with pytest.raises(EvaluationFailedError, match=r"install afluente\[vad\] on every worker"):
        run(english, manifest_of(tmp_path, spaced), WITH)
    module.voice_activity.cache_clear()
