"""m4a, aac, webm, wma, amr, and the sound of videos are decoded to their end, or said to be cut."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from worker.evaluation.audio import AudioError, find_segment, read_segment

# Name, FFmpeg's format, codec, sample rate, and whether there is a picture.
FILES = [
    ("a.m4a", "ipod", "aac", 44_100, False),
    ("a.aac", "adts", "aac", 44_100, False),
    ("a.webm", "webm", "libopus", 48_000, False),
    ("a.mkv", "matroska", "pcm_s16le", 16_000, False),
    ("a.wma", "asf", "wmav2", 44_100, False),
    ("a.amr", "amr", "libopencore_amrnb", 8_000, False),
    ("v.mp4", "mp4", "aac", 44_100, True),
    ("v.mov", "mov", "aac", 44_100, True),
    ("v.mkv", "matroska", "libopus", 48_000, True),
    ("v.avi", "avi", "mp3", 44_100, True),
    ("v.wmv", "asf", "wmav2", 44_100, True),
]


def write(path: Path, form: str, codec: str, rate: int, picture: bool, sound: np.ndarray) -> None:
    with av.open(str(path), "w", format=form) as file:
        image = file.add_stream("mpeg4", rate=25, width=32, height=32) if picture else None
        stream = file.add_stream(codec, rate=rate, layout="mono")
        context = stream.codec_context
        if codec == "wmav2":
            context.bit_rate = 64_000
        resampler = av.AudioResampler(context.format, "mono", rate, context.frame_size or 1_024)
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        packets = [p for one in resampler.resample(frame) for p in stream.encode(one)]
        packets += [p for one in resampler.resample(None) for p in stream.encode(one)]
        packets += stream.encode(None)
        if image is not None:
            for number in range(25):
                still = av.VideoFrame(32, 32, "yuv420p")
                still.pts = number
                packets += image.encode(still)
            packets += image.encode(None)
        packets = [packet for packet in packets if packet.dts is not None]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            file.mux(packet)


@pytest.mark.parametrize(("name", "form", "codec", "rate", "picture"), FILES)
def test_it_is_decoded_to_its_end(
    tmp_path: Path,
    make_sound: Callable[..., np.ndarray],
    name: str,
    form: str,
    codec: str,
    rate: int,
    picture: bool,
) -> None:
    path = tmp_path / name
    write(path, form, codec, rate, picture, make_sound(1.0, rate=rate))
    segment = find_segment(path)
    assert not segment.notes
    # Coders add up to two frames, or lose one.
    assert 0.95 < segment.seconds < 1.08
    assert 0.1 < np.abs(read_segment(segment)).max() < 1.2
    later = read_segment(find_segment(path, 0.5, 0.25))
    assert np.array_equal(later, read_segment(segment)[8_000:12_000]) or rate != 16_000
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 10])
    try:
        said = " ".join(find_segment(path).notes)
    except AudioError as error:
        said = str(error)
    # Where no length is stated, the packet that was cut through shows it.
    assert re.search("damaged|may be truncated|packets could not be decoded", said)


def test_the_first_of_several_sounds_is_decoded_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w", format="matroska") as file:
        streams = [file.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]
        for level, stream in zip((3_000, 6_000), streams, strict=True):
            samples = np.full((1, 16_000), level, np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = 16_000
            for packet in (*stream.encode(frame), *stream.encode(None)):
                file.mux(packet)
    segment = find_segment(path)
    assert segment.notes == ("it has 2 sound tracks; the first was decoded",)
    assert np.allclose(read_segment(segment), 3_000 / 32_768)


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w", format="mp4") as file:
        image = file.add_stream("mpeg4", rate=25, width=32, height=32)
        for packet in (*image.encode(av.VideoFrame(32, 32, "yuv420p")), *image.encode(None)):
            file.mux(packet)
    with pytest.raises(AudioError, match="no audio that can be decoded"):
        find_segment(path)
