"""Decodes compressed audio to its real end, by PyAV (FFmpeg's libraries in a wheel)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO, RawIOBase
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from worker.evaluation.containers import read_ogg_pages

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


def count_frames(handle: FileIO, kind: str) -> Count:
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


def decode_blocks(handle: FileIO, kind: str, most: int) -> Iterator[NDArray[np.float32]]:
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


def _frames(handle: FileIO, kind: str) -> Iterator[av.AudioFrame | None]:
    """Yield each decoded frame, and None for a packet that cannot be decoded."""
    shape = None
    for part in _recordings(handle, kind):
        for frame in _frames_of(part, kind):
            if frame is not None:
                found = frame.sample_rate, frame.layout.nb_channels
                if shape not in {None, found}:
                    raise FFmpegError(
                        "recordings of unlike sample rates or channels are joined in it"
                    )
                shape = found
            yield frame


def _frames_of(part: RawIOBase, kind: str) -> Iterator[av.AudioFrame | None]:
    demuxer = _DEMUXERS.get(kind, kind)
    try:
        with av.open(part, mode="r", format=demuxer, metadata_errors="ignore") as file:
            stream = next(iter(file.streams.audio), None)
            if stream is None or stream.codec_context is None:
                raise FFmpegError("there is no sound in it that can be decoded")
            stream.codec_context.thread_count = 1
            for packet in file.demux(stream):
                try:
                    yield from packet.decode()
                except av.error.InvalidDataError:
                    yield None
    except (av.FFmpegError, ValueError) as error:
        raise FFmpegError(getattr(error, "strerror", None) or str(error)) from None


def _recordings(handle: FileIO, kind: str) -> Iterator[RawIOBase]:
    """Yield the recordings that follow one another in a file, each as a file of its own.

    FFmpeg takes the decoder's tables of the first for all that are joined in an Ogg file.
    """
    size = os.fstat(handle.fileno()).st_size
    starts = (kind == "ogg" and read_ogg_pages(handle).links) or (0,)
    for start, end in zip(starts, (*starts[1:], size), strict=True):
        yield _Window(handle, start, end)


class _Window(RawIOBase):
    """A stretch of a file, read as if it were all of it."""

    def __init__(self, handle: FileIO, start: int, end: int) -> None:
        self._handle, self._start, self._end, self._at = handle, start, end, start

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset from the start, the place, or the end; return where that is."""
        origin = {os.SEEK_SET: self._start, os.SEEK_CUR: self._at, os.SEEK_END: self._end}
        self._at = min(max(origin[whence] + offset, self._start), self._end)
        return self._at - self._start

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the stretch goes; return how many bytes were read."""
        length = max(min(len(buffer), self._end - self._at), 0)
        self._handle.seek(self._at)
        count = self._handle.readinto(memoryview(buffer)[:length])
        self._at += count
        return count
