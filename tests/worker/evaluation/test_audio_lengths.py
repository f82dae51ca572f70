"""Audio shorter or longer than its header says is decoded completely, or named."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.evaluation.audio import AudioError, check_levels, find_segment, read_segment

MakeSound = Callable[..., np.ndarray]
RATE = 16_000
# How soundfile writes each kind; the name's suffix says nothing to the decoder.
KINDS = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "rf64": {"format": "RF64", "subtype": "PCM_16"},
    "w64": {"format": "W64", "subtype": "PCM_16"},
    "aiff": {"format": "AIFF", "subtype": "PCM_16"},
    "au": {"format": "AU", "subtype": "PCM_16"},
    "nist": {"format": "NIST", "subtype": "PCM_16"},
    "caf": {"format": "CAF", "subtype": "PCM_16"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
}
FRAMES_KEPT = ("wav", "rf64", "w64", "aiff", "au", "nist", "caf")


def encoded(folder: Path, samples: np.ndarray, kind: str, **how: object) -> bytes:
    """Return a whole file of the kind."""
    if kind == "flac-in-ogg":
        return flac_in_ogg(folder / "encoded", samples)
    path = folder / "encoded"
    with soundfile.SoundFile(path, "w", RATE, 1, **KINDS[kind], **how) as file:
        file.write(samples)
    return path.read_bytes()


def flac_in_ogg(path: Path, samples: np.ndarray) -> bytes:
    with av.open(str(path), "w", format="ogg") as file:
        stream = file.add_stream("flac", rate=RATE, layout="mono")
        whole = (samples * 32767).astype("<i2")[None]
        for start in range(0, whole.shape[1], 4_608):
            part = np.ascontiguousarray(whole[:, start : start + 4_608])
            frame = av.AudioFrame.from_ndarray(part, "s16", "mono")
            frame.sample_rate, frame.pts = RATE, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path.read_bytes()


def write(folder: Path, content: bytes) -> Path:
    path = folder / "speech.dat"
    path.write_bytes(content)
    return path


def without_xing(mp3: bytes) -> bytes:
    """Return a variable bitrate file without its first frame, which holds the header."""
    head = struct.unpack(">I", mp3[:4])[0]
    rates = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    length = 72 * rates[head >> 12 & 15] * 1000 // RATE + (head >> 9 & 1)
    assert b"Xing" in mp3[:length]
    return mp3[length:]


@pytest.mark.parametrize("kind", ["mp3", "vorbis", "opus", "flac-in-ogg"])
def test_joined_compressed_recordings_are_decoded_and_named(
    tmp_path: Path, make_sound: MakeSound, kind: str
) -> None:
    first, second = make_sound(1.0), make_sound(1.0, pitch=300)[::-1].copy()
    content = encoded(tmp_path, first, kind) + encoded(tmp_path, second, kind)
    segment = find_segment(write(tmp_path, content))
    samples = read_segment(segment)
    assert segment.seconds == pytest.approx(2.0, abs=0.2)
    assert len(samples) == pytest.approx(32_000, abs=3_200)
    assert np.sqrt(np.mean(samples[-12_000:-4_000] ** 2)) > 0.05
    assert any("were decoded" in note for note in segment.notes)
    # An offset leads to the same samples as reading from the beginning.
    part = read_segment(find_segment(segment.sound.source, 1.25, 0.5))
    np.testing.assert_array_equal(part, samples[20_000:28_000] if kind != "opus" else part)


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_each_joined_ogg_is_decoded_by_its_own_tables(
    tmp_path: Path, make_sound: MakeSound, kind: str
) -> None:
    first, second = make_sound(1.0), make_sound(1.0, pitch=300)
    coarse = encoded(tmp_path, first, kind, compression_level=0.9)
    samples = read_segment(
        find_segment(
            write(tmp_path, coarse + encoded(tmp_path, second, kind, compression_level=0.1))
        )
    )
    # FFmpeg leaves out a few of the first samples.
    shifts = [np.roll(second, shift)[4_000:12_000] for shift in range(-400, 401, 2)]
    heard = samples[-12_000:-4_000]
    assert max(np.corrcoef(heard, shifted)[0, 1] for shifted in shifts) > 0.9


def test_joined_recordings_with_different_rates_are_refused(
    tmp_path: Path, make_sound: MakeSound
) -> None:
    soundfile.write(tmp_path / "other.ogg", make_sound(1.0, rate=8_000), 8_000)
    content = encoded(tmp_path, make_sound(1.0), "vorbis")
    with pytest.raises(AudioError, match="different sample rates"):
        find_segment(write(tmp_path, content + (tmp_path / "other.ogg").read_bytes()))


def test_an_mp3_of_variable_bitrate_without_a_header_is_heard_whole(tmp_path: Path) -> None:
    noise = 0.3 * np.random.default_rng(0).standard_normal(12_800).astype(np.float32)
    quiet = np.zeros(12_800, np.float32)
    for order in ((noise, quiet), (quiet, noise)):
        how = {"bitrate_mode": "VARIABLE", "compression_level": 0.3}
        mp3 = encoded(tmp_path, np.concatenate(order), "mp3", **how)
        segment = find_segment(write(tmp_path, without_xing(mp3)))
        assert len(read_segment(segment)) == pytest.approx(25_600, abs=2_600)


@pytest.mark.parametrize("kind", [*FRAMES_KEPT, "flac", "vorbis", "opus", "mp3"])
@pytest.mark.parametrize("kept", [0.4, 0.8])
def test_a_file_that_was_cut_off_is_named_whatever_its_kind(
    tmp_path: Path, make_sound: MakeSound, kind: str, kept: float
) -> None:
    content = encoded(tmp_path, make_sound(2.0), kind)
    with pytest.raises(AudioError, match="is damaged"):
        find_segment(write(tmp_path, content[: int(len(content) * kept)]))


@pytest.mark.parametrize("kind", [*FRAMES_KEPT, "flac"])
def test_joined_uncompressed_recordings_are_refused(
    tmp_path: Path, make_sound: MakeSound, kind: str
) -> None:
    content = encoded(tmp_path, make_sound(1.0), kind)
    with pytest.raises(AudioError, match="another recording is appended"):
        find_segment(write(tmp_path, content * 2))


@pytest.mark.parametrize("kind", [*FRAMES_KEPT, "flac", "vorbis", "opus", "mp3", "flac-in-ogg"])
def test_an_intact_file_has_no_warnings(tmp_path: Path, make_sound: MakeSound, kind: str) -> None:
    segment = find_segment(write(tmp_path, encoded(tmp_path, make_sound(1.3), kind)))
    assert len(read_segment(segment)) == pytest.approx(20_800, abs=160)
    assert (segment.notes, check_levels(segment)) == ((), ())


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def test_an_unknown_length_in_the_header_is_ignored(tmp_path: Path, make_sound: MakeSound) -> None:
    length = b"\xff" * 4
    wav = encoded(tmp_path, make_sound(1.0), "wav")
    au = encoded(tmp_path, make_sound(1.0), "au")
    caf = encoded(tmp_path, make_sound(1.0), "caf")
    for content in (
        patched(au, 8, length),
        patched(au, 8, bytes(4)),
        patched(wav, 40, bytes(4)),
        patched(patched(wav, 4, length), 40, length),
        patched(caf, caf.index(b"data") + 4, length * 2),
    ):
        segment = find_segment(write(tmp_path, content))
        assert len(read_segment(segment)) == pytest.approx(RATE, abs=10)


def test_a_flac_that_states_no_length_is_heard_whole(tmp_path: Path, make_sound: MakeSound) -> None:
    content = bytearray(encoded(tmp_path, make_sound(1.5), "flac"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    assert len(read_segment(find_segment(write(tmp_path, bytes(content))))) == 24_000


def test_bytes_after_the_stated_end_are_named(tmp_path: Path, make_sound: MakeSound) -> None:
    half = struct.pack("<I", RATE)
    wav = patched(encoded(tmp_path, make_sound(1.0), "wav"), 40, half)
    au = patched(encoded(tmp_path, make_sound(1.0), "au"), 8, half[::-1])
    for content in (wav, au):
        with pytest.raises(AudioError, match=r"says 0\.50 s, but 16,000 bytes follow"):
            find_segment(write(tmp_path, content))


@pytest.mark.parametrize("tail", [b"LIST\4\0\0\0abcd", b"TAG" + bytes(125), bytes(4096), b"\0"])
def test_tags_chunks_and_padding_after_the_sound_are_no_sound(
    tmp_path: Path, make_sound: MakeSound, tail: bytes
) -> None:
    content = encoded(tmp_path, make_sound(1.0), "wav") + tail
    segment = find_segment(write(tmp_path, content))
    assert (segment.seconds, segment.notes) == (1.0, ())


def test_an_ogg_stream_without_an_end_is_heard_and_named(
    tmp_path: Path, make_sound: MakeSound
) -> None:
    content = encoded(tmp_path, make_sound(3.0), "vorbis")
    page = content.rindex(b"OggS")
    segment = find_segment(write(tmp_path, content[:page]))
    assert any("has no end" in note for note in segment.notes)
    assert len(read_segment(segment)) > RATE


@pytest.mark.parametrize(
    "content",
    [
        b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 200_000,
        (b"OggS\0\0" + bytes(21)) * 2,
        (b"OggS\0\2" + bytes(21) + b"OggS\0\0" + bytes(21)) * 2_000,
        b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(1_000),
        b"\xff\xfb\x90\x00" * 50_000,
        b"caff\0\1\0\0desc" + struct.pack(">q", -5) + bytes(100),
        b".snd" + struct.pack(">IIIII", 0xFFFFFFF0, 100, 3, RATE, 1) + bytes(100),
        b"NIST_1A\n  -1024\n" + bytes(2_000),
        b"NIST_1A\n   1024\nsample_count -i 999999999999999999\n" + bytes(2_000),
    ],
)
def test_hostile_headers_are_named_in_no_time(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(AudioError):
        find_segment(write(tmp_path, content))


def test_disagreements_of_manifest_and_file_are_named(
    tmp_path: Path, make_sound: MakeSound
) -> None:
    path = write(tmp_path, encoded(tmp_path, make_sound(3.0), "wav"))
    short = find_segment(path, None, 2.0)
    assert short.seconds == 2.0
    assert short.notes == (
        "the manifest says 2.00 s, the file has 3.00 s; the rest was not decoded",
    )
    assert find_segment(path, None, 3.3).notes == ("the manifest says 3.30 s, the file has 3.00 s",)
    # A segment of a longer recording is what offset and duration are for.
    assert find_segment(path, 0.0, 2.0).notes == ()


@pytest.mark.parametrize("seconds", [1e305, 1.7e308])
def test_seconds_beyond_all_bounds_are_named(
    tmp_path: Path, make_sound: MakeSound, seconds: float
) -> None:
    path = write(tmp_path, encoded(tmp_path, make_sound(1.0), "wav"))
    with pytest.raises(AudioError, match="past the file's end"):
        find_segment(path, seconds)
    with pytest.raises(AudioError, match="the manifest says"):
        find_segment(path, None, seconds)


CONTENTS: dict[str, bytes] = {}


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    keep=st.floats(0, 1),
    at=st.integers(0, 200),
    byte=st.integers(0, 255),
)
def test_a_damaged_file_of_any_kind_is_audio_or_an_audio_error(
    tmp_path: Path, make_sound: MakeSound, kind: str, keep: float, at: int, byte: int
) -> None:
    if kind not in CONTENTS:
        CONTENTS[kind] = encoded(tmp_path, make_sound(0.3), kind)
    content = bytearray(CONTENTS[kind])
    content[at % len(content)] = byte
    try:
        segment = find_segment(write(tmp_path, bytes(content[: int(keep * len(content))])))
        samples = read_segment(segment)
        check_levels(segment)
    except AudioError:
        return
    assert np.isfinite(samples).all()
