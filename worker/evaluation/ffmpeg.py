"""Decodes compressed audio to its real end with PyAV (FFmpeg's libraries in a wheel)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO, RawIOBase
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from worker.evaluation.containers import read_ogg_pages

# The demuxer is never guessed: some of FFmpeg's open files that a playlist names.
_DEMUXERS = {"nist": "nistsphere", "mp4": "mov"}
# The length in the header of these is that of the sound; others have none, or FFmpeg guesses it.
_STATING = frozenset({"mp4", "matroska", "asf", "avi"})
# A day at 96 kHz: a few kilobytes of FLAC can contain years of silence.
_MOST_SAMPLES = 24 * 3600 * 96_000


class FFmpegError(Exception):
    """FFmpeg cannot decode the file; the message has the reason."""


@dataclass(frozen=True)
class Count:
    """The content of a file decoded to its end, and the number of `damaged` packets.

    `stated` is the length in seconds by the header of a container such as mp4, None without one; it
    may be that of a video beside the sound. `tracks` is the number of sounds, of which the first is
    decoded.
    """

    frames: int
    sample_rate: int
    channels: int
    damaged: int
    stated: float | None = None
    is_of_video: bool = False
    tracks: int = 1


def count_frames(handle: FileIO, kind: str) -> Count:
    """Return the number of frames by decoding a file to its end; FFmpegError if there are none."""
    frames = rate = channels = damaged = 0
    for frame in _frames(handle, kind):
        if frame is None:
            damaged += 1
            continue
        frames += frame.samples
        rate, channels = frame.sample_rate, frame.layout.nb_channels
        if frames * channels > _MOST_SAMPLES:
            raise FFmpegError("it contains more than a day of audio")
    if not frames:
        raise FFmpegError("no audio can be decoded")
    if kind not in _STATING:
        return Count(frames, rate, channels, damaged)
    return Count(frames, rate, channels, damaged, *_described(handle, kind))


def _described(handle: FileIO, kind: str) -> tuple[float | None, bool, int]:
    """Return the length that the header states, whether it may be a video's, and the tracks."""
    with _opened(next(_recordings(handle, kind)), kind) as file:
        stream = file.streams.audio[0]
        tracks = len(file.streams.audio)
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base), False, tracks
        stated = None if file.duration is None else file.duration / av.time_base
        return stated, bool(file.streams.video), tracks


def decode_blocks(handle: FileIO, kind: str, most: int) -> Iterator[NDArray[np.float32]]:
    """Yield the samples, float32 of shape (frames, channels), in blocks of about `most` frames.

    Damaged packets are skipped. Raises FFmpegError.
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
                    raise FFmpegError("it joins recordings with different sample rates or channels")
                shape = found
            yield frame


def _frames_of(part: RawIOBase, kind: str) -> Iterator[av.AudioFrame | None]:
    try:
        with _opened(part, kind) as file:
            stream = next(iter(file.streams.audio), None)
            if stream is None or stream.codec_context is None:
                raise FFmpegError("it has no audio that can be decoded")
            stream.codec_context.thread_count = 1
            for packet in file.demux(stream):
                try:
                    yield from packet.decode()
                except av.error.InvalidDataError:
                    yield None
    except (av.FFmpegError, ValueError) as error:
        raise FFmpegError(getattr(error, "strerror", None) or str(error)) from None


def _opened(part: RawIOBase, kind: str) -> InputContainer:
    return av.open(part, mode="r", format=_DEMUXERS.get(kind, kind), metadata_errors="ignore")


def _recordings(handle: FileIO, kind: str) -> Iterator[RawIOBase]:
    """Yield the joined recordings of a file, each as a file.

    FFmpeg would use the first recording's decoder tables for all recordings of an Ogg file.
    """
    size = os.fstat(handle.fileno()).st_size
    starts = (kind == "ogg" and read_ogg_pages(handle).links) or (0,)
    for start, end in zip(starts, (*starts[1:], size), strict=True):
        yield _Window(handle, start, end)


class _Window(RawIOBase):
    """A part of a file that is read like a file."""

    def __init__(self, handle: FileIO, start: int, end: int) -> None:
        self._handle, self._start, self._end, self._at = handle, start, end, start

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset from the start, the position, or the end; return the new position."""
        origin = {os.SEEK_SET: self._start, os.SEEK_CUR: self._at, os.SEEK_END: self._end}
        self._at = min(max(origin[whence] + offset, self._start), self._end)
        return self._at - self._start

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer up to the window's end; return the number of bytes read."""
        length = max(min(len(buffer), self._end - self._at), 0)
        self._handle.seek(self._at)
        count = self._handle.readinto(memoryview(buffer)[:length])
        self._at += count
        return count
