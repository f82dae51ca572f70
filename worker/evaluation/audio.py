"""Reads speech of any rate, channel count and common format as 16 kHz mono."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
# Manifests round durations; a segment that ends this near the file's end ends with the file.
_ROUNDING_SECONDS = 0.1
# A file this much shorter than its manifest says was cut off on its way.
_SHORTFALL_SECONDS = 0.5
_LOWEST_RATE = 1_000
_BLOCK_FRAMES = 1 << 20
_UNKNOWN_LENGTH = 0x7FFF_0000


class AudioError(Exception):
    """An utterance's audio cannot be used; the message is the reason that results show."""


@dataclass(frozen=True)
class Segment:
    """A stretch of an audio file, in the file's own frames."""

    path: Path
    start: int
    frames: int
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate


def find_segment(
    path: Path,
    offset_seconds: float | None = None,
    duration_seconds: float | None = None,
    *,
    max_seconds: float = 7200.0,
) -> Segment:
    """Return the stretch that a manifest names, from the file's header alone.

    Without a duration it runs to the file's end. Raises AudioError for what is missing, empty, no
    audio, much shorter than the duration, or longer than `max_seconds`.
    """
    with _open(path) as sound:
        total, rate = sound.frames, sound.samplerate
    if total <= 0:
        raise AudioError("the file holds no audio")
    if rate < _LOWEST_RATE:
        raise AudioError(f"its sample rate of {rate} Hz is too low for speech")
    start = round((offset_seconds or 0.0) * rate)
    if start >= total:
        raise AudioError(f"offset {offset_seconds} s is past the file's end ({total / rate:.2f} s)")
    frames = total - start
    if duration_seconds:
        wanted = round(duration_seconds * rate)
        if wanted - frames > _SHORTFALL_SECONDS * rate:
            raise AudioError(
                f"the manifest says {duration_seconds:.2f} s and there are {frames / rate:.2f} s"
            )
        frames = frames if frames - wanted <= _ROUNDING_SECONDS * rate else max(wanted, 1)
    segment = Segment(path, start, frames, rate)
    if segment.seconds > max_seconds:
        raise AudioError(f"{segment.seconds:.0f} s of audio; at most {max_seconds:.0f} s are taken")
    return segment


def read_segment(segment: Segment) -> NDArray[np.float32]:
    """Return the samples, float32 in [-1, 1] at 16 kHz, channels averaged; shape (samples,).

    Raises AudioError if the file cannot be decoded, ends early, or holds NaN or infinity.
    """
    blocks = []
    missing = segment.frames
    with _open(segment.path) as sound:
        _skip(sound, segment.start)
        while missing > 0:
            block = sound.read(min(_BLOCK_FRAMES, missing), dtype="float32", always_2d=True)
            if not len(block):
                seconds = missing / segment.sample_rate
                raise AudioError(f"the file is damaged: its last {seconds:.2f} s are missing")
            blocks.append(block.mean(axis=1))
            missing -= len(block)
    samples = np.concatenate(blocks)
    if not np.isfinite(samples).all():
        raise AudioError("the file holds NaN or infinite samples")
    if segment.sample_rate != SAMPLE_RATE:
        samples = soxr.resample(samples, segment.sample_rate, SAMPLE_RATE)
        # Never a sample more than the header promised: a window's length must fit the window.
        samples = samples[: segment.frames * SAMPLE_RATE // segment.sample_rate]
    return np.ascontiguousarray(samples, dtype=np.float32)


def _skip(sound: soundfile.SoundFile, frames: int) -> None:
    if sound.seekable():
        sound.seek(frames)
        return
    # Telephony's codecs in wav (GSM 6.10, G.721) can only be read from the beginning.
    while frames > 0:
        frames -= len(sound.read(min(_BLOCK_FRAMES, frames), dtype="float32")) or frames


def _check_whole(handle: BinaryIO) -> None:
    """Raise AudioError for a wav that ends before its header says.

    libsndfile takes what is there and says nothing: all words would be expected of half the sound.
    """
    handle.seek(0)
    header = handle.read(12)
    if header[:4] != b"RIFF" or header[8:] != b"WAVE":
        return
    size = os.fstat(handle.fileno()).st_size
    while len(chunk := handle.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        if name == b"data":
            missing = length - (size - handle.tell())
            # A program that writes to a pipe cannot know the length, and states the largest.
            if missing > 1 and length < _UNKNOWN_LENGTH:
                raise AudioError(f"the file is damaged: its last {missing:,} bytes are missing")
            return
        handle.seek(length + length % 2, os.SEEK_CUR)


@contextmanager
def _open(path: Path) -> Iterator[soundfile.SoundFile]:
    # By handle, so that the content decides the format, not the name.
    try:
        with path.open("rb") as handle:
            if not handle.read(1):
                raise AudioError("the file is empty")
            _check_whole(handle)
            handle.seek(0)
            with soundfile.SoundFile(handle) as sound:
                yield sound
    except FileNotFoundError:
        raise AudioError("there is no such file") from None
    except OSError as error:
        raise AudioError(f"the file cannot be read: {error.strerror or error}") from None
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        raise AudioError(f"not wav, flac, ogg or mp3, or damaged ({reason})") from None
