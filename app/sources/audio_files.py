"""Recognises the audio containers that can be decoded by their first bytes."""

from __future__ import annotations

HEAD_BYTES = 64
"""How many bytes of a file `container_of` needs."""

READABLE = "wav, flac, ogg or mp3 (or W64, aiff, au, caf, NIST SPHERE)"

PLAYABLE = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "mp3": "audio/mpeg"}
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
}
_FORMS = {
    (b"RIFF", b"WAVE"): "wav",
    (b"RIFX", b"WAVE"): "wav",
    (b"FORM", b"AIFF"): "aiff",
    (b"FORM", b"AIFC"): "aiff",
}


def container_of(head: bytes) -> str | None:
    """Return the container that begins with these bytes, or None if it cannot be decoded.

    The name is the one that messages use: wav, w64, flac, ogg, mp3, aiff, au, caf or nist.
    """
    for magic, kind in _AT_THE_START.items():
        if head.startswith(magic):
            return kind
    if form := _FORMS.get((head[:4], head[8:12])):
        return form
    if head.startswith(b"ID3") or _is_mpeg_frame(head):
        return "mp3"
    return None


def _is_mpeg_frame(head: bytes) -> bool:
    """Return whether an MPEG audio frame begins here; False for AAC, whose sync word is alike."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and layer != 0 and bitrate != 15 and rate != 3
