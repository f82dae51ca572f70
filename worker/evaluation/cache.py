"""Keys of transcripts, and an in-memory cache for the command line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version

from app.contract.evaluation import DecodingRecord, Transcript, Utterance
from app.contract.formats import CTRANSLATE2

# Raise this when this package decodes differently, or records more of a transcript.
_RECIPE = 5
_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "soundfile", "soxr", "av")


class InMemoryTranscriptCache:
    """A TranscriptCache in memory."""

    def __init__(self) -> None:
        self.transcripts: dict[str, Transcript] = {}

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Transcript]:
        """Return the stored transcripts among the keys."""
        return {key: self.transcripts[key] for key in keys if key in self.transcripts}

    def put_many(self, transcripts: Mapping[str, Transcript]) -> None:
        """Store the transcripts, except where the key exists already."""
        for key, transcript in transcripts.items():
            self.transcripts.setdefault(key, transcript)


@lru_cache(maxsize=8)
def library_versions(backend: str) -> dict[str, str]:
    """Return the versions of the libraries that a transcript by this backend depends on."""
    runtimes = (CTRANSLATE2,) if backend.startswith(CTRANSLATE2) else ()
    return {name: version(name) for name in (*_LIBRARIES, *runtimes)}


def transcript_key(
    checkpoint_key: str,
    audio_sha256: str,
    utterance: Utterance,
    decoding: DecodingRecord,
) -> str:
    """Return the digest of everything that determines a transcript, 64 hexadecimal digits.

    Reference texts, names, paths and batches do not count.
    """
    parts = {
        "recipe": _RECIPE,
        "checkpoint": checkpoint_key,
        "audio": audio_sha256,
        "offset": utterance.offset_seconds,
        "duration": utterance.duration_seconds,
        "channel": utterance.channel,
        "decoding": decoding.model_dump(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
