"""Finds datasets that share audio, so that one's transcripts are cached for the others."""

from __future__ import annotations

from collections.abc import Sequence

from app.sources.manifests import Manifest, audio_source


def overlaps(manifests: Sequence[Manifest]) -> list[int]:
    """Return for each manifest the index of the first one that it shares audio with.

    Sharing is transitive; a manifest that shares nothing gets its own index. Audio is identified by
    file, member and segment, without reading it.
    """
    first = list(range(len(manifests)))

    def root(index: int) -> int:
        while first[index] != index:
            index = first[index]
        return index

    seen_in: dict[tuple[object, ...], int] = {}
    for index, manifest in enumerate(manifests):
        for utterance in manifest.utterances:
            source = audio_source(manifest, utterance)
            place = utterance.offset_seconds, utterance.duration_seconds, utterance.channel
            one, other = root(seen_in.setdefault((source, *place), index)), root(index)
            first[max(one, other)] = min(one, other)
    return [root(index) for index in range(len(manifests))]
