"""Transcript keys, and the cache that the command line keeps in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version

from app.contract.evaluation import DecodingRecord, Transcript, Utterance

# Raise when this package starts to decode differently.
_RECIPE = 4
_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "soundfile", "soxr", "av")


class InMemoryTranscriptCache:
    """A TranscriptCache that lasts as long as the process."""

    def __init__(self) -> None:
        self.transcripts: dict[str, Transcript] = {}

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Transcript]:
        """Return those of the keys that are known."""
        return {key: self.transcripts[key] for key in keys if key in self.transcripts}

    def put_many(self, transcripts: Mapping[str, Transcript]) -> None:
        """Keep the transcripts; a key that is there already keeps what it has."""
        for key, transcript in transcripts.items():
            self.transcripts.setdefault(key, transcript)


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a transcript depends on."""
    return {name: version(name) for name in _LIBRARIES}


def transcript_key(
    checkpoint_key: str,
    audio_sha256: str,
    utterance: Utterance,
    decoding: DecodingRecord,
) -> str:
    """Return the digest of all that decides a transcript, 64 hexadecimal digits.

    The reference text, names, paths and the batch are no part of it.
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
