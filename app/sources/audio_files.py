"""Recognises the audio containers that can be decoded by their first bytes."""

from __future__ import annotations

HEAD_BYTES = 64
"""How many bytes of a file `container_of` needs."""

READABLE = (
    "wav, flac, ogg, mp3, m4a, aac, webm, wma or amr (or W64, aiff, au, caf, NIST SPHERE, mp4, "
    "mov, mkv, avi, wmv)"
)

PLAYABLE = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
    "mp4": "audio/mp4",
    "aac": "audio/aac",
}
"""The media types of the containers that browsers play."""

_AT_THE_START = {
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"RF64": "wav",
    b"BW64": "wav",
    b"riff\x2e\x91\xcf\x11": "w64",
    b".snd": "au",
    b"dns.": "au",
    b"caff": "caf",
    b"NIST_1A\n": "nist",
    b"\x1aE\xdf\xa3": "matroska",
    b"0&\xb2u\x8ef\xcf\x11": "asf",
    b"#!AMR": "amr",
}
_FORMS = {
    (b"RIFF", b"WAVE"): "wav",
    (b"RIFX", b"WAVE"): "wav",
    (b"RIFF", b"AVI "): "avi",
    (b"FORM", b"AIFF"): "aiff",
    (b"FORM", b"AIFC"): "aiff",
}


def container_of(head: bytes) -> str | None:
    """Return the container that begins with these bytes, or None if it cannot be decoded.

    That is wav, w64, flac, ogg, mp3, aiff, au, caf or nist; or, which only FFmpeg decodes, mp4
    (with m4a and mov), matroska (with webm), asf (wma), avi, aac or amr.
    """
    for magic, kind in _AT_THE_START.items():
        if head.startswith(magic):
            return kind
    if form := _FORMS.get((head[:4], head[8:12])):
        return form
    if head[4:8] == b"ftyp":
        return "mp4"
    if head.startswith(b"ID3") or _is_mpeg_frame(head):
        return "mp3"
    return "aac" if _is_adts_frame(head) else None


def _is_mpeg_frame(head: bytes) -> bool:
    """Return whether an MPEG audio frame begins here; False for AAC, whose sync word is alike."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and layer != 0 and bitrate != 15 and rate != 3


def _is_adts_frame(head: bytes) -> bool:
    """Return whether a frame of AAC begins here that states its own length."""
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 and head[2] >> 2 & 15 < 13
