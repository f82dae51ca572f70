"""Decodes compressed audio to its real end, by PyAV (FFmpeg's libraries in a wheel)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

# The demuxer is named, never guessed: FFmpeg has some that open what a playlist names.
_DEMUXERS = {"nist": "nistsphere", "wav": "wav", "w64": "w64"}
# More than a day at 96 kHz: a few kilobytes of FLAC can claim years of silence.
_MOST_SAMPLES = 24 * 3600 * 96_000


class FFmpegError(Exception):
    """FFmpeg cannot decode the file; the message says why."""


@dataclass(frozen=True)
class Count:
    """What a file holds when it is decoded to its end; `damaged` packets gave nothing."""

    frames: int
    sample_rate: int
    channels: int
    damaged: int


def count_frames(handle: BinaryIO, kind: str) -> Count:
    """Decode a file to its end and return how much there is; FFmpegError if there is nothing."""
    frames = rate = channels = damaged = 0
    for frame in _frames(handle, kind):
        if frame is None:
            damaged += 1
            continue
        frames += frame.samples
        rate, channels = frame.sample_rate, frame.layout.nb_channels
        if frames * channels > _MOST_SAMPLES:
            raise FFmpegError("it holds more than a day of sound")
    if not frames:
        raise FFmpegError("no frame of sound can be decoded")
    return Count(frames, rate, channels, damaged)


def decode_blocks(handle: BinaryIO, kind: str, most: int) -> Iterator[NDArray[np.float32]]:
    """Yield the samples, float32 of shape (frames, channels), at most about `most` frames at once.

    What cannot be decoded is left out. Raises FFmpegError.
    """
    converter = av.AudioResampler(format="fltp")
    gathered: list[NDArray[np.float32]] = []
    length = 0
    for frame in _frames(handle, kind):
        if frame is None:
            continue
        for converted in converter.resample(frame):
            gathered.append(converted.to_ndarray().astype(np.float32, copy=False))
            length += converted.samples
        if length >= most:
            yield np.concatenate(gathered, axis=1).T
            gathered, length = [], 0
    if gathered:
        yield np.concatenate(gathered, axis=1).T


def _frames(handle: BinaryIO, kind: str) -> Iterator[av.AudioFrame | None]:
    """Yield each decoded frame, and None for a packet that cannot be decoded."""
    handle.seek(0)
    try:
        with av.open(
            handle, mode="r", format=_DEMUXERS.get(kind, kind), metadata_errors="ignore"
        ) as file:
            stream = next(iter(file.streams.audio), None)
            if stream is None or stream.codec_context is None:
                raise FFmpegError("there is no sound in it that can be decoded")
            stream.codec_context.thread_count = 1
            shape = None
            for packet in file.demux(stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    yield None
                    continue
                for frame in frames:
                    found = frame.sample_rate, frame.layout.nb_channels
                    if shape not in {None, found}:
                        raise FFmpegError(
                            "recordings of unlike sample rates or channels are joined in it"
                        )
                    shape = found
                    yield frame
    except (av.FFmpegError, ValueError) as error:
        raise FFmpegError(getattr(error, "strerror", None) or str(error)) from None
