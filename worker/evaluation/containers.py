"""Compares what the header of an audio file states with the bytes that are there."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

# A program that writes to a pipe cannot know the length, and states the largest.
_UNKNOWN_32, _UNKNOWN_64 = 0x7FFF_0000, 0x7FFF_0000_0000_0000
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
_NAME = re.compile(rb"[ -~\xa9]{4}")
_FILES = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b".snd", b"dns.", b"caff", b"NIST")
_TAGS = (b"ID3", b"TAG", b"APET", b"LYRI")
_NIST_HEADER_LIMIT = 1 << 16
# A day of the shortest pages; a sound file has a dozen chunks.
_MOST_PAGES, _MOST_CHUNKS = 5_000_000, 10_000


class TooManyPartsError(Exception):
    """A file has more chunks or pages than one of sound could have."""


@dataclass(frozen=True)
class Extent:
    """Where the samples lie by the header: `end` None if it states no length.

    `rest` is how many bytes follow that no chunk and no tag accounts for; `joined` says that
    they begin another audio file.
    """

    start: int
    end: int | None
    size: int
    rest: int = 0
    joined: bool = False

    @property
    def missing(self) -> int:
        """How many bytes of samples the file lacks."""
        return max((self.end or 0) - self.size, 0)


def find_extent(handle: BinaryIO, kind: str) -> Extent | None:
    """Return where a file of uncompressed frames (wav, w64, aiff, au, caf, nist) has its samples.

    Reads headers only. None for another kind, and where no samples are found: the decoder says
    why then. Raises TooManyPartsError.
    """
    size = os.fstat(handle.fileno()).st_size
    match kind:
        case "wav":
            return _riff(handle, size)
        case "w64":
            return _w64(handle, size)
        case "aiff":
            return _chunks(handle, size, 12, ">4sI", b"SSND")
        case "caf":
            return _chunks(handle, size, 8, ">4sq", b"data")
        case "au":
            return _au(handle, size)
        case "nist":
            return _nist(handle, size)
        case _:
            return None


def _riff(handle: BinaryIO, size: int) -> Extent | None:
    magic = _at(handle, 0, 4)
    form = ">4sI" if magic == b"RIFX" else "<4sI"
    large = None
    if magic in {b"RF64", b"BW64"}:
        # Chunk ds64 holds the lengths that do not fit 32 bits: of the file, then of the samples.
        head = _at(handle, 12, 24)
        if len(head) == 24 and head[:4] == b"ds64":
            large = struct.unpack("<Q", head[16:24])[0]
    return _chunks(handle, size, 12, form, b"data", large)


def _chunks(
    handle: BinaryIO, size: int, at: int, form: str, wanted: bytes, large: int | None = None
) -> Extent | None:
    """Walk chunks of a name and a length each; `large` is the length where 32 bits cannot say."""
    head = struct.calcsize(form)
    padded = head == 8
    chunks = 0
    while len(chunk := _at(handle, at, head)) == head:
        chunks = _one_more(chunks)
        name, length = struct.unpack(form, chunk)
        start = at + head
        if name == wanted:
            if length == 0xFFFF_FFFF and large is not None:
                length = large
            # An unfinished recording states nothing, or 0.
            unknown = _UNKNOWN_32 if padded and large is None else _UNKNOWN_64
            if not 0 < length < unknown:
                return Extent(start, None, size)
            return _with_rest(handle, Extent(start, start + length, size), form)
        if length < 0:
            return None
        at = start + length + (length % 2 if padded else 0)
    return None


def _w64(handle: BinaryIO, size: int) -> Extent | None:
    # Lengths count the 24 bytes of the chunk's own head, and chunks lie at multiples of 8.
    at, chunks = 40, 0
    while len(chunk := _at(handle, at, 24)) == 24:
        chunks = _one_more(chunks)
        length = struct.unpack("<Q", chunk[16:])[0]
        if chunk[:16] == b"data" + _W64_TAIL:
            if not 24 < length < _UNKNOWN_64:
                return Extent(at + 24, None, size)
            return _with_rest(handle, Extent(at + 24, at + length, size), "w64")
        if length < 24:
            return None
        at += (length + 7) // 8 * 8
    return None


def _au(handle: BinaryIO, size: int) -> Extent | None:
    head = _at(handle, 0, 12)
    if len(head) < 12:
        return None
    start, length = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:])
    if not 0 < length < _UNKNOWN_32:
        return Extent(start, None, size)
    return _with_rest(handle, Extent(start, start + length, size), None)


def _nist(handle: BinaryIO, size: int) -> Extent | None:
    try:
        start = int(_at(handle, 8, 8))
    except ValueError:
        return None
    header = _at(handle, 0, min(start, _NIST_HEADER_LIMIT)).decode("latin-1")
    numbers = {
        name: int(value) for name, value in re.findall(r"^(\w+) -i (\d{1,18})\s*$", header, re.M)
    }
    coding = re.search(r"^sample_coding -s\d+ (\S+)", header, re.M)
    if coding and "," in coding[1]:
        return None  # compressed (shorten): its bytes say nothing of its length
    if "sample_count" not in numbers:
        return Extent(start, None, size)
    width = numbers.get("sample_n_bytes", 2) * numbers.get("channel_count", 1)
    return _with_rest(handle, Extent(start, start + numbers["sample_count"] * width, size), None)


def _with_rest(handle: BinaryIO, extent: Extent, form: str | None) -> Extent:
    """Return the extent with what follows the samples, less whole chunks, tags and zeros."""
    at = end = extent.end or 0
    if form == "w64":
        at = (end + 7) // 8 * 8
    elif form and form.endswith("I"):
        at = end + end % 2
    chunks = 0
    while at < extent.size:
        chunks = _one_more(chunks)
        head = _at(handle, at, 40)
        if head[:4] in _FILES:
            return Extent(extent.start, end, extent.size, extent.size - at, joined=True)
        length = _chunk_length(head, form)
        if length is None or at + length > extent.size + 1:
            break
        at += length
    rest = max(extent.size - at, 0)
    if rest and (_at(handle, at, 4)[:4].startswith(_TAGS) or _is_blank(handle, at)):
        rest = 0
    # A byte order of chunks that is off by the padding still finds the second file.
    joined = rest > 0 and any(_at(handle, near, 4) in _FILES for near in (end, end + 1))
    return Extent(extent.start, end, extent.size, rest, joined)


def _chunk_length(head: bytes, form: str | None) -> int | None:
    """Return the bytes of the chunk that begins here, its head included; None if none does."""
    if form is None or not _NAME.fullmatch(head[:4]):
        return None
    if form == "w64":
        if len(head) < 24:
            return None
        length = int(struct.unpack("<Q", head[16:24])[0])
        return (length + 7) // 8 * 8 if length >= 24 else None
    size = struct.calcsize(form)
    if len(head) < size:
        return None
    length = int(struct.unpack(form, head[:size])[1])
    if length < 0:
        return None
    return size + length + (length % 2 if size == 8 else 0)


def _one_more(count: int, most: int = _MOST_CHUNKS) -> int:
    if count >= most:
        raise TooManyPartsError(f"it has more than {most:,} chunks or pages")
    return count + 1


def _is_blank(handle: BinaryIO, at: int) -> bool:
    """Return whether only zeros follow: a recorder that fills up its last block."""
    handle.seek(at)
    while block := handle.read(1 << 20):
        if block.count(0) != len(block):
            return False
    return True


def _at(handle: BinaryIO, at: int, length: int) -> bytes:
    try:
        handle.seek(at)
    except (OSError, ValueError, OverflowError):
        return b""  # a length in the header leads beyond what a file can be
    return handle.read(length)


@dataclass(frozen=True)
class OggPages:
    """What the pages of an Ogg file tell: where its recordings begin, and how it ends."""

    links: tuple[int, ...]
    ended: bool
    cut: bool


def read_ogg_pages(handle: BinaryIO) -> OggPages:
    """Return the structure of an Ogg file from the heads of its pages (RFC 3533)."""
    size = os.fstat(handle.fileno()).st_size
    links: list[int] = []
    at, pages, ended, beginning = 0, 0, False, False
    while len(head := _at(handle, at, 27)) == 27 and head[:4] == b"OggS":
        pages = _one_more(pages, _MOST_PAGES)
        kind, segments = head[5], head[26]
        table = handle.read(segments)
        # A link may hold several streams: all of them begin before any goes on.
        if kind & 2 and not beginning:
            links.append(at)
        beginning, ended = bool(kind & 2), bool(kind & 4)
        at += 27 + segments + sum(table)
        if len(table) < segments or at > size:
            return OggPages(tuple(links), ended=False, cut=True)
    return OggPages(tuple(links), ended, cut=at < size and head.startswith((b"O", b"OggS")))


def states_its_length(handle: BinaryIO) -> bool:
    """Return whether an mp3 has a Xing, Info or VBRI header, which counts its frames."""
    at = 0
    head = _at(handle, 0, 10)
    if head[:3] == b"ID3" and len(head) == 10:
        # Four bytes of seven bits each.
        at = 10 + sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(head[6:]))
    start = _at(handle, at, 4096)
    sync = start.find(b"\xff")
    frame = start[sync : sync + 64] if sync >= 0 else b""
    return any(tag in frame for tag in (b"Xing", b"Info", b"VBRI"))
