"""Refuses a study that would be tested on what it was chosen on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from app.contract.errors import InvalidManifestError, Problem
from app.sources.audio_sources import AudioSource
from app.sources.local import Roots
from app.sources.manifests import Manifest
from app.sources.shared_audio import MOST_SHOWN, shared
from worker.evaluation.audio import AudioError, find_segment, inspect, read_segment


def refuse_shared(
    development: Mapping[str, Manifest], test: Mapping[str, Manifest], roots: Roots
) -> None:
    """Raise InvalidManifestError for recordings in both, also in another file format."""

    def seconds(source: AudioSource) -> float | None:
        try:
            return round(inspect(source, roots).content.seconds, 3)
        except AudioError:
            return None

    def content(source: AudioSource) -> str | None:
        try:
            samples = read_segment(find_segment(source, roots=roots))
            return hashlib.sha256(samples.tobytes()).hexdigest()
        except AudioError:
            return None

    messages = shared(development, test, seconds, content)
    if messages:
        more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
        raise InvalidManifestError(
            f"Development and test sets share audio: {messages[0]}{more}. Take it out of one of "
            "them.",
            param="test",
            problems=[Problem(message, "test") for message in messages[:MOST_SHOWN]],
        )
