"""Finds recordings that two groups of datasets share: what was chosen on must not be tested on."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from time import monotonic

from app.contract.errors import SourceError
from app.contract.evaluation import Utterance
from app.sources.audio_sources import AudioSource
from app.sources.local import Roots
from app.sources.manifests import Manifest, audio_source

MOST_SHOWN = 20
_MOST_SECONDS = 10.0


def shared_recordings(
    first: Mapping[str, Manifest], second: Mapping[str, Manifest], roots: Roots = None
) -> list[str]:
    """Return a message for each recording whose file is in both groups, under whatever name.

    Files are the same if their bytes are; segments of a file are shared if they overlap. Only files
    whose size occurs in both groups are read, for some seconds: a client waits, and a worker looks
    at all of them. Files that cannot be read are left out.
    """
    end = monotonic() + _MOST_SECONDS

    def size(source: AudioSource) -> int | None:
        with suppress(SourceError, OSError):
            if source.member is None:
                return source.path.stat().st_size
            if monotonic() < end:
                with source.open(roots) as handle:
                    return os.fstat(handle.fileno()).st_size
        return None

    def digest(source: AudioSource) -> str | None:
        if monotonic() > end:
            return None
        with suppress(SourceError, OSError), source.open(roots) as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
        return None

    return shared(first, second, size, digest)


def shared(
    first: Mapping[str, Manifest],
    second: Mapping[str, Manifest],
    rough: Callable[[AudioSource], Hashable],
    exact: Callable[[AudioSource], Hashable],
) -> list[str]:
    """Return a message for each recording that is in both groups.

    Recordings are equal if `exact` is; it is asked for those only whose `rough` value, which is
    cheaper, occurs in both groups. None never is equal.
    """
    rough_of, exact_of = cache(rough), cache(exact)
    here = {rough_of(source) for _, _, source in _all(first)}
    there = {rough_of(source) for _, _, source in _all(second)}
    both = (here & there) - {None}
    places: dict[Hashable, list[tuple[str, Utterance]]] = defaultdict(list)
    for name, utterance, source in _all(first):
        if rough_of(source) in both:
            places[exact_of(source)].append((name, utterance))
    messages = []
    for name, utterance, source in _all(second):
        if rough_of(source) not in both or exact_of(source) is None:
            continue
        for other, its in places.get(exact_of(source), ()):
            if _overlap(utterance, its):
                messages.append(
                    f"{utterance.audio} (utterance {utterance.index + 1} of {name}) is the "
                    f"recording {its.audio} (utterance {its.index + 1} of {other})"
                )
                break
    return messages


def _all(group: Mapping[str, Manifest]) -> Iterator[tuple[str, Utterance, AudioSource]]:
    for name, manifest in group.items():
        for utterance in manifest.utterances:
            source = audio_source(manifest, utterance)
            plain = Path(os.path.normpath(source.path))
            yield name, utterance, replace(source, path=plain)


def _overlap(one: Utterance, other: Utterance) -> bool:
    if None not in {one.channel, other.channel} and one.channel != other.channel:
        return False
    (a, b), (c, d) = _extent(one), _extent(other)
    return a < d and c < b


def _extent(utterance: Utterance) -> tuple[float, float]:
    start = utterance.offset_seconds or 0.0
    duration = utterance.duration_seconds
    return start, float("inf") if duration is None else start + duration
