"""Refuses to test a merge on what it was chosen or calibrated on."""

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
    chosen_on: Mapping[str, Manifest],
    tested_on: Mapping[str, Manifest],
    roots: Roots,
    *,
    called: str = "Development",
    param: str = "test",
) -> None:
    """Raise InvalidManifestError for recordings in both, also in another file format.

    `called` is what the first sets are, and `param` the field of the second, for the message.
    """

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

    messages = shared(chosen_on, tested_on, seconds, content)
    if messages:
        more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
        raise InvalidManifestError(
            f"{called} and test sets share audio: {messages[0]}{more}. Take it out of one of them.",
            param=param,
            problems=[Problem(message, param) for message in messages[:MOST_SHOWN]],
        )
