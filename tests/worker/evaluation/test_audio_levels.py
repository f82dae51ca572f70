"""Warnings about silence, overload and channels; the memory for reading audio."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from app.contract.evaluation import DecodingOptions
from worker.evaluation import audio
from worker.evaluation.audio import AudioError, check_levels, find_segment, read_segment
from worker.evaluation.cache import InMemoryTranscriptCache
from worker.evaluation.overlap import overlaps
from worker.evaluation.runner import evaluate

MakeSound = Callable[..., np.ndarray]


def heard(path: Path, samples: np.ndarray, channel: int | None = None) -> str:
    """Return what is said of the levels of float samples."""
    soundfile.write(path, samples, 16_000, subtype="FLOAT", format="WAV")
    return "; ".join(check_levels(find_segment(path, channel=channel)))


@pytest.mark.parametrize("gain", [-1.0, -0.7])
def test_channels_that_cancel_each_other_are_named(
    tmp_path: Path, make_sound: MakeSound, gain: float
) -> None:
    one = make_sound(1.0)
    both = np.stack([one, gain * one], axis=1)
    assert "cancel each other" in heard(tmp_path / "a.wav", both)
    assert heard(tmp_path / "a.wav", both, channel=1) == ""


def test_different_channels_do_not_count_as_cancelling(
    tmp_path: Path, make_sound: MakeSound
) -> None:
    one, other = make_sound(1.0), make_sound(1.0, pitch=300)
    for channels in ((one, one), (one, other), (one, 0 * one), (one, *[0 * one] * 7)):
        assert heard(tmp_path / "a.wav", np.stack(channels, axis=1)) == ""
    noise = 0.1 * np.random.default_rng(0).standard_normal((16_000, 16))
    assert heard(tmp_path / "a.wav", noise) == ""


def test_silence_and_overload_are_named(tmp_path: Path, make_sound: MakeSound) -> None:
    sound = make_sound(1.0)
    path = tmp_path / "a.wav"
    assert "digital silence" in heard(path, 0 * sound)
    assert "almost silent" in heard(path, sound * 1e-4)
    assert "times full scale" in heard(path, sound * 30_000)
    assert "is clipped" in heard(path, np.clip(sound * 20, -1, 1))
    assert heard(path, sound) == heard(path, sound / np.abs(sound).max()) == ""


def test_a_channel_is_selected_or_refused(tmp_path: Path, make_sound: MakeSound) -> None:
    path = tmp_path / "a.wav"
    one, other = make_sound(1.0), make_sound(1.0, pitch=300)
    soundfile.write(path, np.stack([one, other], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_segment(find_segment(path, channel=1)), other)
    np.testing.assert_allclose(read_segment(find_segment(path)), (one + other) / 2, atol=1e-7)
    with pytest.raises(AudioError, match="there is no channel 2: the file has 2"):
        find_segment(path, channel=2)


def test_the_channel_is_part_of_transcripts_and_results_and_warnings_of_cached_ones(
    english: Path, make_manifest, make_sound: MakeSound, tmp_path: Path
) -> None:
    one = make_sound(1.0)
    soundfile.write(tmp_path / "s.wav", np.stack([one, -one], axis=1), 16_000)
    lines = tuple({"audio_filepath": "s.wav", "text": "x", **more} for more in ({}, {"channel": 1}))
    manifest = make_manifest(extra=lines)
    cache = InMemoryTranscriptCache()
    for _ in range(2):
        result = evaluate(
            english, "a" * 64, manifest, DecodingOptions(num_beams=1), cache, device="cpu"
        )
        assert [utterance.channel for utterance in result.utterances] == [None, 1]
        assert [warning.index for warning in result.audio_warnings] == [0]
        assert "cancel each other" in result.audio_warnings[0].message
        assert result.status == "succeeded"
    assert all(utterance.cached for utterance in result.utterances)
    assert len(cache.transcripts) == 2
    assert overlaps([make_manifest(extra=lines[:1]), make_manifest(extra=lines[1:])]) == [0, 1]


@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_change_no_sample(
    tmp_path: Path, make_sound: MakeSound, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    path = tmp_path / "a.wav"
    samples = np.stack([make_sound(1.0, rate=44_100)] * channels, axis=1)
    soundfile.write(path, samples, 44_100, subtype="FLOAT")
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", 1_000)
    whole = soxr.resample(samples.mean(axis=1), 44_100, 16_000)
    np.testing.assert_array_equal(read_segment(find_segment(path)), whole)


def test_memory_is_bounded_by_the_result_and_a_block(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    with soundfile.SoundFile(path, "w", 192_000, 2, format="FLAC") as file:
        for _ in range(60):
            file.write(np.zeros((192_000, 2), np.int16))
    tracemalloc.start()
    try:
        samples = read_segment(find_segment(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(samples) == 960_000
    assert peak < samples.nbytes + 24 * 2**20  # all at 192 kHz were 88 MB


@pytest.mark.parametrize(("rate", "channels"), [(655_350, 1), (500, 1), (16_000, 65)])
def test_unsupported_rates_and_channels_are_refused(
    tmp_path: Path, rate: int, channels: int
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((rate, channels)), rate)
    with pytest.raises(AudioError, match=r"not supported|65 channels"):
        find_segment(path)


def test_a_file_that_is_swapped_is_not_read(tmp_path: Path, make_sound: MakeSound) -> None:
    path, other = tmp_path / "a.wav", tmp_path / "b.wav"
    for file in (path, other):
        soundfile.write(file, make_sound(1.0), 16_000)
    segment = find_segment(path)
    other.replace(path)
    with pytest.raises(AudioError, match="changed since it was looked at"):
        read_segment(segment)
