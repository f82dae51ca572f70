"""Finds the datasets that share audio: what is decoded for one is cached for the others."""

from __future__ import annotations

from collections.abc import Sequence

from app.sources.manifests import Manifest, audio_path


def overlaps(manifests: Sequence[Manifest]) -> list[int]:
    """Return for each manifest the first that it shares audio with, be it through others.

    One that shares none gets its own index. Audio is told apart by path and stretch, unread.
    """
    first = list(range(len(manifests)))

    def root(index: int) -> int:
        while first[index] != index:
            index = first[index]
        return index

    heard_in: dict[tuple[object, ...], int] = {}
    for index, manifest in enumerate(manifests):
        for utterance in manifest.utterances:
            path = audio_path(manifest, utterance)
            place = utterance.offset_seconds, utterance.duration_seconds, utterance.channel
            stretch = (path, *place)
            one, other = root(heard_in.setdefault(stretch, index)), root(index)
            first[max(one, other)] = min(one, other)
    return [root(index) for index in range(len(manifests))]
