from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.evaluation.audio import AudioError, find_segment, read_segment

MakeSound = Callable[..., np.ndarray]
FORMATS = ("wav", "flac", "ogg", "mp3")


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_rate_and_channel_count_becomes_16_khz_mono(
    tmp_path: Path, make_sound: MakeSound, extension: str, rate: int, channels: int
) -> None:
    path = tmp_path / f"sound.{extension}"
    original = make_sound(1.5, rate=rate)
    soundfile.write(path, np.stack([original] * channels, axis=1), rate)
    segment = find_segment(path)
    samples = read_segment(segment)
    assert segment.seconds == pytest.approx(1.5, abs=0.01)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(24_000, abs=160)
    expected = make_sound(1.5)[2_000:20_000]
    assert np.corrcoef(samples[2_000:20_000], expected)[0, 1] > 0.95


def test_a_segment_is_cut_by_offset_and_duration(tmp_path: Path, make_sound: MakeSound) -> None:
    path = tmp_path / "sound.wav"
    original = make_sound(3.0)
    soundfile.write(path, original, 16_000, subtype="FLOAT")
    samples = read_segment(find_segment(path, 1.0, 0.5))
    np.testing.assert_array_equal(samples, original[16_000:24_000])
    assert len(read_segment(find_segment(path, 1.0))) == 32_000
    assert len(read_segment(find_segment(path, None, 0.5))) == 8_000


def test_a_rounded_duration_keeps_the_end_of_the_file(
    tmp_path: Path, make_sound: MakeSound
) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, make_sound(2.04), 16_000)
    for duration in (2.0, 2.04, 2.1):
        assert find_segment(path, None, duration).seconds == 2.04


def test_a_file_shorter_than_its_manifest_says_is_named(
    tmp_path: Path, make_sound: MakeSound
) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, make_sound(1.0), 16_000)
    with pytest.raises(AudioError, match=r"says 2\.00 s, but there are only 1\.00 s"):
        find_segment(path, None, 2.0)
    with pytest.raises(AudioError, match="past the file's end"):
        find_segment(path, 1.0, 0.5)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"this is text\n" * 99, "not wav, flac, ogg, mp3"),
        (b"RIFF", "damaged"),
    ],
)
def test_what_is_no_audio_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=reason):
        find_segment(path)


def test_missing_files_folders_and_empty_audio_are_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        find_segment(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="this is a folder"):
        find_segment(tmp_path)
    soundfile.write(tmp_path / "zero.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(AudioError, match="contains no audio"):
        find_segment(tmp_path / "zero.wav")


@pytest.mark.parametrize(("real", "claimed"), [("flac", "mp3"), ("mp3", "wav"), ("ogg", "flac")])
def test_the_content_decides_the_format_not_the_name(
    tmp_path: Path, make_sound: MakeSound, real: str, claimed: str
) -> None:
    soundfile.write(tmp_path / f"sound.{real}", make_sound(1.0), 16_000)
    mislabelled = (tmp_path / f"sound.{real}").rename(tmp_path / f"sound.{claimed}")
    assert len(read_segment(find_segment(mislabelled))) == 16_000


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32"])
def test_telephony_codecs_are_read_from_any_offset(
    tmp_path: Path, make_sound: MakeSound, subtype: str
) -> None:
    path = tmp_path / "call.wav"
    soundfile.write(path, make_sound(2.0, rate=8_000), 8_000, subtype=subtype)
    whole = read_segment(find_segment(path))
    part = read_segment(find_segment(path, 0.5, 1.0))
    assert len(part) == 16_000
    assert np.corrcoef(part[800:-800], whole[8_800:23_200])[0, 1] > 0.99


def test_six_channels_become_one(tmp_path: Path, make_sound: MakeSound) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.stack([make_sound(1.0)] * 6, axis=1), 16_000)
    assert read_segment(find_segment(path)).shape == (16_000,)


def test_a_wav_that_was_cut_off_is_named(tmp_path: Path, make_sound: MakeSound) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, make_sound(2.0), 16_000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match=r"its last 32,\d\d\d bytes are missing"):
        find_segment(path)
    streamed = bytearray(content)
    streamed[4:8] = streamed[40:44] = b"\xff" * 4
    path.write_bytes(streamed)
    assert find_segment(path).seconds == 2.0


def test_an_eight_hour_file_is_named_before_it_is_read(
    tmp_path: Path, make_sound: MakeSound
) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, make_sound(2.0), 16_000)
    with pytest.raises(AudioError, match="2 s of audio; at most 1 s"):
        find_segment(path, max_seconds=1.0)
    assert find_segment(path, 0.5, 0.5, max_seconds=1.0).seconds == 0.5


def test_samples_that_are_not_numbers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.array([0.0, np.nan, 0.1] * 100), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN or infinite"):
        read_segment(find_segment(path))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.integers(0, 8_000), at=st.integers(0, 8_000), byte=st.integers(0, 255))
def test_damaged_flac_is_audio_or_an_audio_error(
    tmp_path: Path, make_sound: MakeSound, keep: int, at: int, byte: int
) -> None:
    path = tmp_path / "sound.flac"
    if not path.exists():
        soundfile.write(path, make_sound(0.3), 16_000)
    content = bytearray(path.read_bytes()[:keep])
    if content:
        content[at % len(content)] = byte
    damaged = tmp_path / "damaged.flac"
    damaged.write_bytes(content)
    try:
        samples = read_segment(find_segment(damaged, max_seconds=60.0))
    except AudioError:
        return
    assert np.isfinite(samples).all()
