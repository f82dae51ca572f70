"""Compares the header of an audio file with the bytes in the file."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

# Programs that write to a pipe state the largest length, since they do not know the real one.
_UNKNOWN_32, _UNKNOWN_64 = 0x7FFF_0000, 0x7FFF_0000_0000_0000
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
_NAME = re.compile(rb"[ -~\xa9]{4}")
_FILES = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b".snd", b"dns.", b"caff", b"NIST")
_TAGS = (b"ID3", b"TAG", b"APET", b"LYRI")
_NIST_HEADER_LIMIT = 1 << 16
# A day of the shortest pages; an audio file has about a dozen chunks.
_MOST_PAGES, _MOST_CHUNKS = 5_000_000, 10_000


class TooManyPartsError(Exception):
    """A file has more chunks or pages than an audio file can have."""


@dataclass(frozen=True)
class Extent:
    """The samples' position by the header; `end` is None if the header has no length.

    `rest` is the number of following bytes that belong to no chunk or tag; `joined` is True if they
    start another audio file.
    """

    start: int
    end: int | None
    size: int
    rest: int = 0
    joined: bool = False

    @property
    def missing(self) -> int:
        """The number of missing bytes."""
        return max((self.end or 0) - self.size, 0)


def find_extent(handle: BinaryIO, kind: str) -> Extent | None:
    """Return the position of the samples in an uncompressed file (wav, w64, aiff, au, caf, nist).

    Reads headers only. None for other kinds, and if no samples are found (the decoder will report
    why). Raises TooManyPartsError.
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
        # Chunk ds64 has the 64-bit lengths of the file and of the samples.
        head = _at(handle, 12, 24)
        if len(head) == 24 and head[:4] == b"ds64":
            large = struct.unpack("<Q", head[16:24])[0]
    return _chunks(handle, size, 12, form, b"data", large)


def _chunks(
    handle: BinaryIO, size: int, at: int, form: str, wanted: bytes, large: int | None = None
) -> Extent | None:
    """Find the chunk `wanted`; `large` is its length if that does not fit in 32 bits."""
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
            # An unfinished recording has an unknown length, or 0.
            unknown = _UNKNOWN_32 if padded and large is None else _UNKNOWN_64
            if not 0 < length < unknown:
                return Extent(start, None, size)
            return _with_rest(handle, Extent(start, start + length, size), form)
        if length < 0:
            return None
        at = start + length + (length % 2 if padded else 0)
    return None


def _w64(handle: BinaryIO, size: int) -> Extent | None:
    # Lengths include the chunk's 24-byte header, and chunks are aligned to 8 bytes.
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
        return None  # compressed (shorten): the size does not give the length
    if "sample_count" not in numbers:
        return Extent(start, None, size)
    width = numbers.get("sample_n_bytes", 2) * numbers.get("channel_count", 1)
    return _with_rest(handle, Extent(start, start + numbers["sample_count"] * width, size), None)


def _with_rest(handle: BinaryIO, extent: Extent, form: str | None) -> Extent:
    """Return the extent with the bytes after the samples, except whole chunks, tags and zeros."""
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
    # The second file may start one byte later, after padding.
    joined = rest > 0 and any(_at(handle, near, 4) in _FILES for near in (end, end + 1))
    return Extent(extent.start, end, extent.size, rest, joined)


def _chunk_length(head: bytes, form: str | None) -> int | None:
    """Return the length of the chunk that begins here, with its header; None if there is none."""
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
    """Return whether only zeros follow, with which some recorders fill their last block."""
    handle.seek(at)
    while block := handle.read(1 << 20):
        if block.count(0) != len(block):
            return False
    return True


def _at(handle: BinaryIO, at: int, length: int) -> bytes:
    try:
        handle.seek(at)
    except (OSError, ValueError, OverflowError):
        return b""  # an offset that no file can have
    return handle.read(length)


@dataclass(frozen=True)
class OggPages:
    """The structure of an Ogg file: the starts of its recordings, and how it ends."""

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
        # A link may have several streams, whose first pages come first.
        if kind & 2 and not beginning:
            links.append(at)
        beginning, ended = bool(kind & 2), bool(kind & 4)
        at += 27 + segments + sum(table)
        if len(table) < segments or at > size:
            return OggPages(tuple(links), ended=False, cut=True)
    return OggPages(tuple(links), ended, cut=at < size and head.startswith((b"O", b"OggS")))


def states_its_length(handle: BinaryIO) -> bool:
    """Return whether an mp3 has a Xing, Info or VBRI header, which has the number of frames."""
    at = 0
    head = _at(handle, 0, 10)
    if head[:3] == b"ID3" and len(head) == 10:
        # The tag's size has seven bits per byte.
        at = 10 + sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(head[6:]))
    start = _at(handle, at, 4096)
    sync = start.find(b"\xff")
    frame = start[sync : sync + 64] if sync >= 0 else b""
    return any(tag in frame for tag in (b"Xing", b"Info", b"VBRI"))
