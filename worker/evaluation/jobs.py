"""Prepares decoding: each utterance's audio, language and transcript key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from app.contract.evaluation import (
    DETECTED,
    DecodingOptions,
    DecodingRecord,
    Dtype,
    Fallback,
    SkippedUtterance,
    Utterance,
)
from app.sources.architectures.architecture import SAMPLE_RATE
from app.sources.architectures.whisper.generation import summarize
from app.sources.audio_sources import AudioSource
from app.sources.manifests import Manifest, audio_source
from worker.evaluation.audio import AudioError, Segment, find_segment
from worker.evaluation.cache import library_versions, transcript_key
from worker.evaluation.decoder import Facts
from worker.evaluation.voice_activity import voice_activity


@dataclass(frozen=True)
class DecodingSetup:
    """A checkpoint and its decoding settings, the same for all utterances."""

    checkpoint_key: str
    facts: Facts
    options: DecodingOptions
    dtype: Dtype
    device_type: str
    backend: str

    @property
    def window_seconds(self) -> float:
        """The longest audio that is decoded at once."""
        return self.facts.window_samples / SAMPLE_RATE

    def spoken(self, utterance: Utterance) -> str | None:
        """Return the language that the checkpoint is told; None if it is told none."""
        return self.options.language_of(utterance) if self.facts.languages else None

    def record(self, *spoken: str | None, long: bool = False) -> DecodingRecord:
        """Return the settings as results show them, for utterances of these languages.

        None stands for those whose language is detected. `long` is True if any audio is longer
        than the window.
        """
        divides = long and self.options.voice_activity
        several = len(spoken) > 1
        told = None if None in spoken else next(iter(spoken), None)
        own = self.facts.settings(self.options, told, long=long and not divides)
        falls_back = self.options.search == "temperature_fallback"
        plain: Literal["greedy", "beam"] = "greedy" if self.options.num_beams == 1 else "beam"
        return DecodingRecord(
            backend=self.backend,
            search="temperature_fallback" if falls_back else plain,
            fallback=Fallback() if falls_back else None,
            voice_activity=voice_activity() if divides else None,
            num_beams=self.options.num_beams,
            language=None if several else told,
            languages=tuple(sorted(code or DETECTED for code in spoken)) if several else None,
            task=self.options.task if self.facts.languages else None,
            checkpoint_settings={name: summarize(value) for name, value in sorted(own.items())},
            dtype=self.dtype,
            device_type=self.device_type,
            versions=library_versions(self.backend),
        )


@dataclass(frozen=True)
class DecodingJob:
    """An utterance that can be decoded."""

    utterance: Utterance
    segment: Segment
    language: str | None
    key: str
    is_long: bool


@dataclass
class Preparation:
    """The utterances that can be decoded, and those that cannot, by index."""

    jobs: list[DecodingJob] = field(default_factory=list)
    skipped: dict[int, SkippedUtterance] = field(default_factory=dict)

    def skip(self, utterance: Utterance, reason: str) -> None:
        """Record that an utterance cannot be decoded."""
        self.skipped[utterance.index] = SkippedUtterance(
            index=utterance.index, audio=utterance.audio, reason=reason
        )


def prepare_jobs(
    manifest: Manifest,
    setup: DecodingSetup,
    roots: tuple[Path, ...] | None = None,
    *,
    check_stop: Callable[[], None] = lambda: None,
) -> Preparation:
    """Return a job for every utterance whose audio can be read.

    Audio must be under the `roots` (None: anywhere). `check_stop` is called before each utterance,
    and may raise to stop.
    """
    record = lru_cache(setup.record)
    preparation = Preparation()
    for utterance in manifest.utterances:
        check_stop()
        language = setup.spoken(utterance)
        try:
            segment = _find(setup, utterance, audio_source(manifest, utterance), language, roots)
        except AudioError as error:
            preparation.skip(utterance, str(error))
            continue
        is_long = segment.seconds > setup.window_seconds
        how = record(language, long=is_long)
        key = transcript_key(setup.checkpoint_key, segment.sound.sha256, utterance, how)
        preparation.jobs.append(DecodingJob(utterance, segment, language, key, is_long))
    return preparation


def _find(
    setup: DecodingSetup,
    utterance: Utterance,
    source: AudioSource,
    language: str | None,
    roots: tuple[Path, ...] | None,
) -> Segment:
    segment = find_segment(
        source,
        utterance.offset_seconds,
        utterance.duration_seconds,
        channel=utterance.channel,
        roots=roots,
        max_seconds=setup.options.max_audio_seconds,
    )
    facts = setup.facts
    obstacle = None if setup.options.voice_activity else facts.long_form_obstacle
    if segment.seconds > setup.window_seconds and obstacle:
        raise AudioError(
            f"{segment.seconds:.2f} s of audio; {obstacle}; ask for voice_activity to divide it"
        )
    if language and language not in facts.languages:
        raise AudioError(f'the checkpoint does not know the language "{language}"')
    return segment
