"""Reads audio files of any common format, rate and channel count as 16 kHz mono."""

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
from app.sources.architectures.architecture import SAMPLE_RATE
from app.sources.audio_files import HEAD_BYTES, READABLE, container_of
from app.sources.audio_sources import AudioSource
from app.sources.checkpoint import Signature
from worker.evaluation.containers import (
    Extent,
    OggPages,
    TooManyPartsError,
    find_extent,
    read_ogg_pages,
    states_its_length,
)
from worker.evaluation.ffmpeg import FFmpegError, count_frames, decode_blocks

# Manifests round durations: a segment that ends this close to the file's end ends with the file.
_ROUNDING_SECONDS = 0.1
# A file that is shorter than its manifest says by more than this is truncated.
_SHORTFALL_SECONDS = 0.5
# mp3 encoders add up to four short frames, which the header may or may not count.
_MP3_PADDING = 2_400
# In mp4 and the like, what coding adds at the start or end may be counted or not.
_PACKETS_SECONDS = 0.25
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 384_000
_MOST_CHANNELS, _MOST_LINKS = 64, 1_000
# Samples in memory at once, over all channels.
_BLOCK_SAMPLES = 1 << 20
# libsndfile reports at least this length if the header has none.
_UNKNOWN_FRAMES = 1 << 48

_COMPRESSED = {"FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}
# Amplitudes relative to full scale: -66 dB, and more than the overshoot of a codec.
_SILENCE, _OVERLOAD = 5e-4, 1.5
_FULL_SCALE, _CLIPPED_SHARE = 0.9999, 5e-3
# The average of n independent channels has 1/n of their power; a tenth of that is cancellation.
_CANCELLED = 0.1

_JOINED = (
    "another recording is appended to it and would not be decoded; join recordings with a program "
    "that knows their format"
)

_Block = NDArray[np.float32]


class AudioError(Exception):
    """An utterance's audio cannot be used; results show the message as the reason."""


@dataclass(frozen=True)
class Content:
    """The decodable content of an audio file, whatever its header says.

    `ffmpeg` is True if FFmpeg must decode it, because libsndfile would not read it to its end.
    `notes` are disagreements between header and content.
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
class AudioFile:
    """An inspected audio file: its container's `kind`, its digest and its content.

    `signature` is that of the file, which for a member of one is the file around it.
    """

    source: AudioSource
    signature: Signature
    sha256: str
    kind: str
    content: Content


@dataclass(frozen=True)
class Segment:
    """A segment of an audio file, in the file's own frames; `channel` None averages all.

    `notes` are disagreements between file, header and manifest, for the results.
    """

    sound: AudioFile
    start: int
    frames: int
    channel: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.sound.content.sample_rate


def find_segment(
    source: AudioSource | Path,
    offset_seconds: float | None = None,
    duration_seconds: float | None = None,
    *,
    channel: int | None = None,
    max_seconds: float = 7200.0,
    roots: tuple[Path, ...] | None = None,
) -> Segment:
    """Return the segment that a manifest names; the file must be under `roots` (None: anywhere).

    Without a duration it extends to the file's end. Raises AudioError if the file is missing,
    empty, not audio, truncated, or much shorter than the duration, or the segment is longer than
    `max_seconds`.
    """
    sound = inspect(source, roots)
    content = sound.content
    total, rate = content.seconds, content.sample_rate
    offset = offset_seconds or 0.0
    # Compare seconds before multiplying: a manifest may have 1e308.
    if offset >= total:
        raise AudioError(f"offset {offset:g} s is past the file's end ({total:.2f} s)")
    if channel is not None and channel >= content.channels:
        raise AudioError(
            f"there is no channel {channel}: the file has {content.channels}, counted from 0"
        )
    start = min(round(offset * rate), content.frames - 1)
    frames = content.frames - start
    notes = list(content.notes)
    if duration_seconds:
        short = duration_seconds - frames / rate
        if short > _SHORTFALL_SECONDS:
            raise AudioError(
                f"the manifest says {_seconds(duration_seconds)}, but there are only "
                f"{_seconds(frames / rate)}"
            )
        if short > _ROUNDING_SECONDS or (offset_seconds is None and -short > _SHORTFALL_SECONDS):
            notes.append(
                f"the manifest says {_seconds(duration_seconds)}, the file has {_seconds(total)}"
                + ("" if short > 0 else "; the rest was not decoded")
            )
        if -short > _ROUNDING_SECONDS:
            frames = max(round(duration_seconds * rate), 1)
    segment = Segment(sound, start, frames, channel, tuple(notes))
    if segment.seconds > max_seconds:
        raise AudioError(
            f"{segment.seconds:.0f} s of audio; at most {max_seconds:.0f} s are allowed"
        )
    return segment


def read_segment(segment: Segment) -> NDArray[np.float32]:
    """Return the samples, float32 in [-1, 1] at 16 kHz, channels averaged; shape (samples,).

    Needs memory for the result and one block. Raises AudioError if the file cannot be decoded, ends
    early, changed since it was inspected, or contains NaN or infinity.
    """
    rate = segment.sound.content.sample_rate
    # Never more samples than the header has: a window's audio must fit the window.
    samples = np.empty(segment.frames * SAMPLE_RATE // rate, np.float32)
    filled = 0
    for block in _resampled(_mono(segment), rate):
        taken = block[: len(samples) - filled]
        samples[filled : filled + len(taken)] = taken
        filled += len(taken)
    if not np.isfinite(samples[:filled]).all():
        raise AudioError("the file contains NaN or infinite samples")
    return samples[:filled]


@lru_cache(maxsize=1 << 16)
def check_levels(segment: Segment) -> tuple[str, ...]:
    """Return warnings about a segment's levels: silence, overload, clipping, cancellation.

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
        return ()  # read_segment reports why
    channels = len(energy)
    mean, power = energy.mean() / frames, mono / frames
    notes = []
    if power * channels < _CANCELLED * mean and mean > _SILENCE**2:
        notes.append(
            f"its {channels} channels cancel each other when averaged (one is inverted): choose "
            'one with "channel" in the manifest'
        )
    elif power < _SILENCE**2:
        level = "digital silence" if peak == 0 else f"{10 * math.log10(power or 1e-20):.0f} dBFS"
        notes.append(f"it is almost silent ({level})")
    if peak > _OVERLOAD:
        notes.append(f"its samples reach {peak:.3g} times full scale")
    elif full > _CLIPPED_SHARE * frames * channels:
        notes.append(
            f"it is clipped: {full / frames / channels:.1%} of its samples are at full scale"
        )
    return tuple(notes)


def inspect(source: AudioSource | Path, roots: tuple[Path, ...] | None = None) -> AudioFile:
    """Return a file's content; compressed files are decoded to their end for this, once.

    Raises AudioError if the file is missing, outside the roots, not audio, or truncated.
    """
    if isinstance(source, Path):
        source = AudioSource(source)
    try:
        with source.open_file(roots) as handle:
            signature = Signature.of(os.fstat(handle.fileno()))
    except SourceError as error:
        raise AudioError(str(error)) from None
    found = _remembered(source, signature)
    if isinstance(found, str):
        raise AudioError(found)
    return found


@lru_cache(maxsize=1 << 16)
def _remembered(source: AudioSource, signature: Signature) -> AudioFile | str:
    """Return the file's content, or the reason why it cannot be used."""
    try:
        with _open(source, signature) as handle:
            return _inspect(handle, source, signature)
    except AudioError as error:
        return str(error)


def _inspect(handle: FileIO, source: AudioSource, signature: Signature) -> AudioFile:
    if not os.fstat(handle.fileno()).st_size:
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
        # An unfinished recording has a length of 0 in its header.
        unfinished = extent is not None and extent.end is None and extent.size > extent.start
        content = header or _count(handle, kind)
        if content.frames == 0 and unfinished:
            content = _count(handle, kind)
        notes = _check_extent(extent, content.seconds)
        content = replace(content, notes=(*content.notes, *notes))
    if content.frames <= 0:
        raise AudioError("the file contains no audio")
    if not _LOWEST_RATE <= content.sample_rate <= _HIGHEST_RATE:
        raise AudioError(
            f"its sample rate of {content.sample_rate:,} Hz is not supported "
            f"({_LOWEST_RATE:,} to {_HIGHEST_RATE:,} Hz)"
        )
    if content.channels > _MOST_CHANNELS:
        raise AudioError(
            f"it has {content.channels:,} channels; at most {_MOST_CHANNELS} are allowed"
        )
    handle.seek(0)
    sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    return AudioFile(source, signature, sha256, kind, content)


def _read_header(handle: FileIO, kind: str) -> tuple[str, Content | None]:
    """Return the file's kind, and its content by libsndfile's header, or None."""
    try:
        with _libsndfile(handle) as file:
            # The container may follow a tag.
            kind = _COMPRESSED.get(file.format, kind)
            if file.frames < _UNKNOWN_FRAMES:
                return kind, Content(file.frames, file.samplerate, file.channels)
    except soundfile.SoundFileError:
        pass  # FFmpeg may decode it, or report what is wrong
    return kind, None


def _count(handle: FileIO, kind: str) -> Content:
    try:
        count = count_frames(handle, kind)
    except FFmpegError as error:
        raise AudioError(f"the file is damaged, or cannot be decoded ({error})") from None
    notes = []
    if count.damaged:
        notes.append(f"{count.damaged:,} of its packets could not be decoded")
    seconds = count.frames / count.sample_rate
    missing = (count.stated or 0.0) - seconds
    if missing > _PACKETS_SECONDS:
        if not count.is_of_video:
            raise AudioError(f"the file is damaged: {missing:.2f} s of it are missing")
        notes.append(f"it may be truncated: {_seconds(seconds)} of sound to {count.stated:.2f} s")
    if count.tracks > 1:
        notes.append(f"it has {count.tracks} sound tracks; the first was decoded")
    return Content(count.frames, count.sample_rate, count.channels, True, tuple(notes))


def _read_through(
    handle: FileIO, kind: str, header: Content | None, pages: OggPages | None
) -> Content:
    """Return a compressed file's content by decoding it to its end.

    libsndfile, which can seek, decodes it later if its header has the same length.
    """
    notes = _check_pages(pages) if pages else ()
    whole = _count(handle, kind)
    if header is None:
        return replace(whole, notes=(*notes, *whole.notes))
    slack = _ROUNDING_SECONDS
    if kind == "mp3":
        slack = max(slack, _MP3_PADDING / whole.sample_rate)
    more = whole.seconds - header.seconds
    # Without a Xing header, libsndfile guesses an mp3's length from its first bitrate.
    guessed = kind == "mp3" and not states_its_length(handle)
    if not guessed:
        if more < -slack:
            raise AudioError(f"the file is damaged: {-more:.2f} s of it are missing")
        if more > slack and kind == "flac":
            raise AudioError(_JOINED)  # FFmpeg loses a frame at the boundary
        if more > slack:
            stated, decoded = _seconds(header.seconds), _seconds(whole.seconds)
            notes += (f"its header says {stated}, but {decoded} were decoded",)
    if notes or abs(more) > slack:
        return replace(whole, notes=(*notes, *whole.notes))
    return replace(header, frames=min(header.frames, whole.frames)) if guessed else header


def _check_pages(pages: OggPages) -> tuple[str, ...]:
    if pages.cut:
        raise AudioError("the file is damaged: it ends within a page of its Ogg stream")
    if len(pages.links) > _MOST_LINKS:
        raise AudioError(
            f"it has {len(pages.links):,} joined recordings; at most {_MOST_LINKS} are allowed"
        )
    notes = []
    if len(pages.links) > 1:
        notes.append(f"it has {len(pages.links)} joined recordings; all were decoded")
    if not pages.ended:
        notes.append("it may be truncated: its Ogg stream has no end")
    return tuple(notes)


def _check_extent(extent: Extent | None, seconds: float) -> tuple[str, ...]:
    """Return notes about bytes that the header does not account for.

    `seconds` is the decoded length. Raises AudioError if audio is missing or would not be decoded.
    """
    if extent is None or extent.end is None:
        return ()
    there = min(extent.end, extent.size) - extent.start
    if extent.missing:
        lost = extent.missing / max(there, 1) * seconds
        if lost > _ROUNDING_SECONDS or not seconds:
            raise AudioError(f"the file is damaged: its last {extent.missing:,} bytes are missing")
        return (f"{extent.missing:,} bytes are missing, by its header",)
    if extent.joined:
        raise AudioError(_JOINED)
    if extent.rest:
        more = extent.rest / max(there, 1) * seconds
        if more > _ROUNDING_SECONDS:
            raise AudioError(
                f"its header says {_seconds(seconds)}, but {extent.rest:,} bytes follow "
                f"({_seconds(more)}) that would not be decoded; write the file again"
            )
        return (f"{extent.rest:,} bytes after the end in its header were not decoded",)
    return ()


def _mono(segment: Segment) -> Iterator[_Block]:
    for block in _blocks(segment):
        yield block.mean(axis=1)


def _resampled(blocks: Iterator[_Block], rate: int) -> Iterator[_Block]:
    """Yield the blocks resampled to 16 kHz; block boundaries do not change the samples."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _blocks(segment: Segment) -> Iterator[_Block]:
    """Yield the segment's samples in blocks of shape (frames, channels).

    AudioError if the file ends before the segment.
    """
    sound = segment.sound
    missing = segment.frames
    with _open(sound.source, sound.signature) as handle:
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
    """Yield blocks from the segment's start to the file's end."""
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
    """Open the file by its descriptor, so that the content determines the format, not the name."""
    os.lseek(handle.fileno(), 0, os.SEEK_SET)
    return soundfile.SoundFile(handle.fileno(), closefd=False)


def _skip(sound: soundfile.SoundFile, frames: int, most: int) -> None:
    if sound.seekable():
        sound.seek(frames)
        return
    # Telephony codecs in wav (GSM 6.10, G.721) are not seekable.
    while frames > 0:
        frames -= len(sound.read(min(most, frames), dtype="float32")) or frames


@contextmanager
def _open(source: AudioSource, signature: Signature) -> Iterator[FileIO]:
    """Open the file that was inspected before; AudioError if it was replaced."""
    try:
        with source.open(signature=signature) as handle:
            yield handle
    except SourceError as error:
        raise AudioError(str(error)) from None
    except OSError as error:
        raise AudioError(f"the file cannot be read: {error.strerror or error}") from None


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 1e9 else f"{value:.3g} s"
