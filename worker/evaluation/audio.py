"""Reads speech of any rate, channel count and common format as 16 kHz mono."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from io import FileIO
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from app.contract.errors import SourceError
from app.sources.architectures.whisper.configs import SAMPLE_RATE
from app.sources.audio_files import HEAD_BYTES, READABLE, container_of
from app.sources.checkpoint import Signature
from app.sources.local import open_regular, open_unchanged
from worker.evaluation.containers import (
    Extent,
    OggPages,
    TooManyPartsError,
    find_extent,
    read_ogg_pages,
    states_its_length,
)
from worker.evaluation.ffmpeg import FFmpegError, count_frames, decode_blocks

# Manifests round durations; a segment that ends this near the file's end ends with the file.
_ROUNDING_SECONDS = 0.1
# A file this much shorter than its manifest says was cut off on its way.
_SHORTFALL_SECONDS = 0.5
# Encoders of mp3 add up to four short frames, which a header may count or not.
_MP3_PADDING = 2_400
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 384_000
_MOST_CHANNELS, _MOST_LINKS = 64, 1_000
# Samples of all channels that are in memory at once.
_BLOCK_SAMPLES = 1 << 20
# What libsndfile says of a stream whose header states no length.
_UNKNOWN_FRAMES = 1 << 48

_COMPRESSED = {"FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}
# Levels, as amplitudes of full scale: -66 dB, and what is no overshoot of a codec.
_SILENCE, _OVERLOAD = 5e-4, 1.5
_FULL_SCALE, _CLIPPED_SHARE = 0.9999, 5e-3
# Averaging n unlike channels leaves 1/n of their power; a tenth of that is cancellation.
_CANCELLED = 0.1

_JOINED = (
    "another recording is joined to it and would not be heard; join recordings by a program that "
    "knows their format"
)

_Block = NDArray[np.float32]


class AudioError(Exception):
    """An utterance's audio cannot be used; the message is the reason that results show."""


@dataclass(frozen=True)
class Content:
    """What can be heard of an audio file, whatever its header says.

    `ffmpeg` says who decodes it: FFmpeg where libsndfile would not read it to its end. `notes`
    tell what header and content disagree on.
    """

    frames: int
    sample_rate: int
    channels: int
    ffmpeg: bool = False
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate


@dataclass(frozen=True)
class Sound:
    """An audio file that was looked at: its container's `kind`, its digest and its content."""

    path: Path
    signature: Signature
    sha256: str
    kind: str
    content: Content


@dataclass(frozen=True)
class Segment:
    """A stretch of an audio file, in the file's own frames; `channel` None averages all.

    `notes` are what file, header and manifest disagree on, for the results to tell.
    """

    sound: Sound
    start: int
    frames: int
    channel: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.sound.content.sample_rate


def find_segment(
    path: Path,
    offset_seconds: float | None = None,
    duration_seconds: float | None = None,
    *,
    channel: int | None = None,
    max_seconds: float = 7200.0,
    roots: tuple[Path, ...] | None = None,
) -> Segment:
    """Return the stretch that a manifest names; the file must lie under `roots` (None: anywhere).

    Without a duration it runs to the file's end. Raises AudioError for what is missing, empty, no
    audio, cut off, much shorter than the duration, or longer than `max_seconds`.
    """
    sound = inspect(path, roots)
    content = sound.content
    total, rate = content.seconds, content.sample_rate
    offset = offset_seconds or 0.0
    # Seconds are compared before they are multiplied: a manifest may state 1e308.
    if offset >= total:
        raise AudioError(f"offset {offset:g} s is past the file's end ({total:.2f} s)")
    if channel is not None and channel >= content.channels:
        raise AudioError(
            f"channel {channel} is asked for; the file has {content.channels}, counted from 0"
        )
    start = min(round(offset * rate), content.frames - 1)
    frames = content.frames - start
    notes = list(content.notes)
    if duration_seconds:
        short = duration_seconds - frames / rate
        if short > _SHORTFALL_SECONDS:
            raise AudioError(
                f"the manifest says {_seconds(duration_seconds)} and there are "
                f"{_seconds(frames / rate)}"
            )
        if short > _ROUNDING_SECONDS or (offset_seconds is None and -short > _SHORTFALL_SECONDS):
            notes.append(
                f"the manifest says {_seconds(duration_seconds)}, the file has {_seconds(total)}"
                + ("" if short > 0 else "; the rest was not heard")
            )
        if -short > _ROUNDING_SECONDS:
            frames = max(round(duration_seconds * rate), 1)
    segment = Segment(sound, start, frames, channel, tuple(notes))
    if segment.seconds > max_seconds:
        raise AudioError(f"{segment.seconds:.0f} s of audio; at most {max_seconds:.0f} s are taken")
    return segment


def read_segment(segment: Segment) -> NDArray[np.float32]:
    """Return the samples, float32 in [-1, 1] at 16 kHz, channels averaged; shape (samples,).

    Memory is that of the result and of a block. Raises AudioError if the file cannot be decoded,
    ends early, changed since it was looked at, or holds NaN or infinity.
    """
    rate = segment.sound.content.sample_rate
    # Never a sample more than the header promised: a window's length must fit the window.
    samples = np.empty(segment.frames * SAMPLE_RATE // rate, np.float32)
    filled = 0
    for block in _resampled(_mono(segment), rate):
        taken = block[: len(samples) - filled]
        samples[filled : filled + len(taken)] = taken
        filled += len(taken)
    if not np.isfinite(samples[:filled]).all():
        raise AudioError("the file holds NaN or infinite samples")
    return samples[:filled]


@lru_cache(maxsize=1 << 16)
def listen(segment: Segment) -> tuple[str, ...]:
    """Return what is wrong with the levels of a segment: silence, overload, cancellation.

    Raises AudioError like `read_segment`.
    """
    frames, full, peak, mono = 0, 0, 0.0, 0.0
    energy = np.zeros(1 if segment.channel is not None else segment.sound.content.channels)
    for block in _blocks(segment):
        loud = np.abs(block)
        peak = max(peak, float(loud.max()))
        full += int((loud >= _FULL_SCALE).sum())
        energy += np.square(block, dtype=np.float64).sum(axis=0)
        mono += float(np.square(block.mean(axis=1), dtype=np.float64).sum())
        frames += len(block)
    if not frames or not math.isfinite(mono):
        return ()  # reading it says why
    channels = len(energy)
    mean, heard = energy.mean() / frames, mono / frames
    notes = []
    if heard * channels < _CANCELLED * mean and mean > _SILENCE**2:
        notes.append(
            f"its {channels} channels cancel each other when they are averaged (one is inverted): "
            'name one by "channel" in the manifest'
        )
    elif heard < _SILENCE**2:
        level = "digital silence" if peak == 0 else f"{10 * math.log10(heard or 1e-20):.0f} dBFS"
        notes.append(f"next to nothing can be heard in it ({level})")
    if peak > _OVERLOAD:
        notes.append(f"its samples reach {peak:.3g} times full scale")
    elif full > _CLIPPED_SHARE * frames * channels:
        notes.append(
            f"it is clipped: {full / frames / channels:.1%} of its samples are at full scale"
        )
    return tuple(notes)


def inspect(path: Path, roots: tuple[Path, ...] | None = None) -> Sound:
    """Return what a file holds; compressed ones are decoded to their end for it, each once.

    Raises AudioError for what is missing, outside the roots, no audio, cut off, or not read whole.
    """
    try:
        with open_regular(path, roots, path.name) as handle:
            signature = Signature.of(os.fstat(handle.fileno()))
    except SourceError as error:
        raise AudioError(str(error)) from None
    found = _remembered(path, signature)
    if isinstance(found, str):
        raise AudioError(found)
    return found


@lru_cache(maxsize=1 << 16)
def _remembered(path: Path, signature: Signature) -> Sound | str:
    """Return what the file holds, or the reason why it cannot be used."""
    try:
        with _open(path, signature) as handle:
            return _inspect(handle, path, signature)
    except AudioError as error:
        return str(error)


def _inspect(handle: FileIO, path: Path, signature: Signature) -> Sound:
    if not signature.size:
        raise AudioError("the file is empty")
    kind = container_of(handle.read(HEAD_BYTES))
    if kind is None:
        raise AudioError(f"not {READABLE}, or damaged")
    try:
        extent = find_extent(handle, kind)
        pages = read_ogg_pages(handle) if kind == "ogg" else None
    except TooManyPartsError as error:
        raise AudioError(str(error)) from None
    kind, header = _read_header(handle, kind)
    if kind in _COMPRESSED.values():
        content = _read_through(handle, kind, header, pages)
    else:
        # A recording that was never finished states a length of 0.
        unfinished = extent is not None and extent.end is None and extent.size > extent.start
        content = header or _count(handle, kind)
        if content.frames == 0 and unfinished:
            content = _count(handle, kind)
        notes = _check_extent(extent, content.seconds)
        content = replace(content, notes=(*content.notes, *notes))
    if content.frames <= 0:
        raise AudioError("the file holds no audio")
    if not _LOWEST_RATE <= content.sample_rate <= _HIGHEST_RATE:
        raise AudioError(
            f"its sample rate of {content.sample_rate:,} Hz is not that of speech "
            f"({_LOWEST_RATE:,} to {_HIGHEST_RATE:,} Hz)"
        )
    if content.channels > _MOST_CHANNELS:
        raise AudioError(f"it has {content.channels:,} channels; at most {_MOST_CHANNELS} are read")
    handle.seek(0)
    sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    return Sound(path, signature, sha256, kind, content)


def _read_header(handle: FileIO, kind: str) -> tuple[str, Content | None]:
    """Return the kind of file and what libsndfile says of it, None if it cannot tell."""
    try:
        with _libsndfile(handle) as file:
            # A tag may come before any of them.
            kind = _COMPRESSED.get(file.format, kind)
            if file.frames < _UNKNOWN_FRAMES:
                return kind, Content(file.frames, file.samplerate, file.channels)
    except soundfile.SoundFileError:
        pass  # FFmpeg may know it, or says what is wrong
    return kind, None


def _count(handle: FileIO, kind: str) -> Content:
    try:
        count = count_frames(handle, kind)
    except FFmpegError as error:
        raise AudioError(f"the file is damaged, or cannot be decoded ({error})") from None
    notes = (f"{count.damaged:,} of its packets could not be decoded",) if count.damaged else ()
    return Content(count.frames, count.sample_rate, count.channels, True, notes)


def _read_through(
    handle: FileIO, kind: str, header: Content | None, pages: OggPages | None
) -> Content:
    """Return what a compressed file holds when it is decoded to its end.

    libsndfile, which finds any offset at once, decodes it later if it sees the same length.
    """
    notes = _check_pages(pages) if pages else ()
    whole = _count(handle, kind)
    if header is None:
        return replace(whole, notes=(*notes, *whole.notes))
    slack = _ROUNDING_SECONDS
    if kind == "mp3":
        slack = max(slack, _MP3_PADDING / whole.sample_rate)
    more = whole.seconds - header.seconds
    # Without a header of its own, an mp3's length is only a guess from its first bitrate.
    guessed = kind == "mp3" and not states_its_length(handle)
    if not guessed:
        if more < -slack:
            raise AudioError(f"the file is damaged: {-more:.2f} s of it are missing")
        if more > slack and kind == "flac":
            raise AudioError(_JOINED)  # FFmpeg loses a frame where they meet
        if more > slack:
            said, heard = _seconds(header.seconds), _seconds(whole.seconds)
            notes += (f"its header tells of {said}; {heard} were heard",)
    if notes or abs(more) > slack:
        return replace(whole, notes=(*notes, *whole.notes))
    return replace(header, frames=min(header.frames, whole.frames)) if guessed else header


def _check_pages(pages: OggPages) -> tuple[str, ...]:
    if pages.cut:
        raise AudioError("the file is damaged: it ends within a page of its Ogg stream")
    if len(pages.links) > _MOST_LINKS:
        raise AudioError(f"{len(pages.links):,} recordings are joined in it; at most {_MOST_LINKS}")
    notes = []
    if len(pages.links) > 1:
        notes.append(f"{len(pages.links)} recordings are joined in it; all were heard")
    if not pages.ended:
        notes.append("it may be cut off: its Ogg stream has no end")
    return tuple(notes)


def _check_extent(extent: Extent | None, seconds: float) -> tuple[str, ...]:
    """Return notes of bytes that the header does not account for; `seconds` is what is heard.

    Raises AudioError where sound is missing, or follows that would not be heard.
    """
    if extent is None or extent.end is None:
        return ()
    there = min(extent.end, extent.size) - extent.start
    if extent.missing:
        lost = extent.missing / max(there, 1) * seconds
        if lost > _ROUNDING_SECONDS or not seconds:
            raise AudioError(f"the file is damaged: its last {extent.missing:,} bytes are missing")
        return (f"{extent.missing:,} bytes that its header tells of are missing",)
    if extent.joined:
        raise AudioError(_JOINED)
    if extent.rest:
        more = extent.rest / max(there, 1) * seconds
        if more > _ROUNDING_SECONDS:
            raise AudioError(
                f"its header tells of {_seconds(seconds)}, and {extent.rest:,} bytes follow "
                f"({_seconds(more)}) that would not be heard; write the file anew"
            )
        return (f"{extent.rest:,} bytes after what its header tells of were not heard",)
    return ()


def _mono(segment: Segment) -> Iterator[_Block]:
    for block in _blocks(segment):
        yield block.mean(axis=1)


def _resampled(blocks: Iterator[_Block], rate: int) -> Iterator[_Block]:
    """Yield the same at 16 kHz; the cuts between blocks change no sample."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _blocks(segment: Segment) -> Iterator[_Block]:
    """Yield the segment's samples as they are, shape (frames, channels), a block at a time.

    AudioError if there are fewer than the segment has.
    """
    sound = segment.sound
    missing = segment.frames
    with _open(sound.path, sound.signature) as handle:
        for block in _decoded(handle, segment):
            block = block[:missing]
            missing -= len(block)
            yield block if segment.channel is None else block[:, [segment.channel]]
            if not missing:
                return
    lost = missing / sound.content.sample_rate
    if lost > _ROUNDING_SECONDS:
        raise AudioError(f"the file is damaged: its last {lost:.2f} s are missing")


def _decoded(handle: FileIO, segment: Segment) -> Iterator[_Block]:
    """Yield blocks from the segment's start on to the file's end."""
    sound = segment.sound
    most = max(_BLOCK_SAMPLES // sound.content.channels, 1)
    try:
        if sound.content.ffmpeg:
            skipped = 0
            for block in decode_blocks(handle, sound.kind, most):
                rest = block[max(segment.start - skipped, 0) :]
                skipped += len(block) - len(rest)
                if len(rest):
                    yield rest
            return
        with _libsndfile(handle) as file:
            _skip(file, segment.start, most)
            while len(block := file.read(most, dtype="float32", always_2d=True)):
                yield block
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise AudioError(f"the file is damaged ({reason})") from None
    except FFmpegError as error:
        raise AudioError(f"the file is damaged ({error})") from None


def _libsndfile(handle: FileIO) -> soundfile.SoundFile:
    """Open the file by its descriptor, so that the content decides the format, not the name."""
    os.lseek(handle.fileno(), 0, os.SEEK_SET)
    return soundfile.SoundFile(handle.fileno(), closefd=False)


def _skip(sound: soundfile.SoundFile, frames: int, most: int) -> None:
    if sound.seekable():
        sound.seek(frames)
        return
    # Telephony's codecs in wav (GSM 6.10, G.721) can only be read from the beginning.
    while frames > 0:
        frames -= len(sound.read(min(most, frames), dtype="float32")) or frames


@contextmanager
def _open(path: Path, signature: Signature) -> Iterator[FileIO]:
    """Open the file that was looked at before; AudioError if another is in its place."""
    try:
        with open_unchanged(path, signature, path.name) as handle:
            yield handle
    except SourceError as error:
        raise AudioError(str(error)) from None
    except OSError as error:
        raise AudioError(f"the file cannot be read: {error.strerror or error}") from None


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 1e9 else f"{value:.3g} s"
