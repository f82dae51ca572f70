from __future__ import annotations

from pathlib import Path

from app.contract.evaluation import Utterance
from app.sources.manifests import Manifest
from worker.evaluation.overlap import overlaps


def manifest(folder: str, *audio: str, offset: float | None = None) -> Manifest:
    utterances = tuple(
        Utterance(index=n, audio=name, reference="", offset_seconds=offset)
        for n, name in enumerate(audio)
    )
    return Manifest(Path(folder), utterances, "a" * 64)


def test_sharing_audio_is_transitive() -> None:
    sets = [
        manifest("/a", "1.wav", "2.wav"),
        manifest("/b", "1.wav"),
        manifest("/a", "3.wav"),
        manifest("/a", "2.wav", "/b/3.wav"),
        manifest("/b", "3.wav", "4.wav"),
    ]
    assert overlaps(sets) == [0, 1, 2, 0, 0]


def test_different_segments_of_a_file_are_different_audio() -> None:
    sets = [manifest("/a", "1.wav", offset=offset) for offset in (None, 0.0, 1.0, 1.0)]
    assert overlaps(sets) == [0, 1, 2, 2]
