"""Decodes a dataset with a checkpoint; uses cached transcripts and skips unusable audio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter

import torch
from cachetools import LRUCache

from app.contract.errors import EvaluationFailedError
from app.contract.evaluation import (
    AudioWarning,
    DatasetResult,
    DecodingOptions,
    Dtype,
    Transcript,
    TranscriptCache,
    UtteranceResult,
)
from app.sources.manifests import Manifest
from worker.evaluation.audio import AudioError, check_levels, read_segment
from worker.evaluation.decoder import Decoder, Hypothesis, Samples, Sound
from worker.evaluation.families import load, read_facts
from worker.evaluation.jobs import DecodingJob, DecodingSetup, Preparation, prepare_jobs
from worker.evaluation.voice_activity import decode_stretches, find_speech, voice_activity

_KEYS_AT_ONCE = 500


class EvaluationStoppedError(Exception):
    """`should_stop` returned True; finished transcripts are in the cache."""


def evaluate(
    checkpoint: Path,
    checkpoint_key: str,
    manifest: Manifest,
    options: DecodingOptions,
    cache: TranscriptCache,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    device: str | None = None,
    roots: tuple[Path, ...] | None = None,
    decoder: Callable[[], Decoder] | None = None,
    sounds: SoundCache | None = None,
) -> DatasetResult:
    """Return the transcripts of all utterances, and the skipped utterances with reasons.

    `checkpoint_key` is the digest of the checkpoint's tensors, config, generation config and
    tokenizer. `decoder` returns a decoder that is loaded already; it is called if any transcript is
    missing. `sounds` keeps features for later calls. `progress` gets the utterances done and their
    total after each batch, when its transcripts are in the cache. Audio must be under the `roots`
    (None: anywhere). `device` defaults to the first GPU, if there is one. Raises
    EvaluationStoppedError, InvalidCheckpointError, OutOfMemoryError, and EvaluationFailedError for
    half precision without a GPU, or voice activity without its library.
    """

    def check_stop() -> None:
        if should_stop():
            raise EvaluationStoppedError

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    facts = read_facts(checkpoint, options.backend)
    options = facts.honoured(options)
    dtype = options.dtype or default_dtype(device)
    if dtype != "float32" and torch.device(device).type == "cpu":
        raise EvaluationFailedError(f"{dtype} needs a GPU; decode in float32 on a CPU.")
    if options.voice_activity:
        voice_activity()  # refuses before anything is decoded
    setup = DecodingSetup(
        checkpoint_key=checkpoint_key,
        facts=facts,
        options=options,
        dtype=dtype,
        device_type=torch.device(device).type,
        backend=facts.backend(options, dtype, device),
    )
    preparation = prepare_jobs(manifest, setup, roots, check_stop=check_stop)

    def loaded() -> Decoder:
        return decoder() if decoder else load(checkpoint, device, dtype, options)

    run = _Run(loaded, setup, preparation, cache, progress, check_stop, sounds or SoundCache(0))
    run.recall()
    run.decode()
    return _result(manifest, run)


def default_dtype(device: str) -> Dtype:
    """Return float16 for a GPU, otherwise float32."""
    return "float16" if torch.device(device).type == "cuda" else "float32"


class SoundCache:
    """The features of utterances, as many as fit a number of bytes; the last used stay."""

    def __init__(self, max_bytes: int) -> None:
        self._sounds: LRUCache[Hashable, Sound] = LRUCache(
            max_bytes, getsizeof=lambda sound: sound.size_bytes
        )

    def get(self, key: Hashable) -> Sound | None:
        """Return the features under a key, or None."""
        return self._sounds.get(key)

    def put(self, key: Hashable, sound: Sound) -> None:
        """Keep features, if they fit."""
        with suppress(ValueError):  # larger than the whole cache
            self._sounds[key] = sound


@dataclass
class _Run:
    """A running evaluation."""

    load: Callable[[], Decoder]
    setup: DecodingSetup
    preparation: Preparation
    cache: TranscriptCache
    progress: Callable[[int, int], None]
    check_stop: Callable[[], None]
    sounds: SoundCache
    transcripts: dict[str, Transcript] = field(default_factory=dict)
    reused: frozenset[str] = frozenset()
    unreadable: dict[str, str] = field(default_factory=dict)
    done: int = 0
    _hearing_seconds: float = 0.0

    @cached_property
    def decoder(self) -> Decoder:
        """The checkpoint, loaded when first needed."""
        return self.load()

    @cached_property
    def utterances_of(self) -> Counter[str]:
        """The number of utterances with each key; equal audio is decoded once."""
        return Counter(job.key for job in self.preparation.jobs)

    def recall(self) -> None:
        """Load the transcripts that are in the cache."""
        keys = list(self.utterances_of)
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            self.check_stop()
            self.transcripts |= self.cache.get_many(keys[start : start + _KEYS_AT_ONCE])
        self.reused = frozenset(self.transcripts)
        self._report(self.transcripts)

    def decode(self) -> None:
        """Decode the rest in batches; each is cached before the next one starts."""
        missing = {job.key: job for job in self.preparation.jobs if job.key not in self.transcripts}
        for batch in self._batches([job for job in missing.values() if not job.is_long]):
            started = perf_counter() - self._hearing_seconds
            self._hearing_seconds = 0.0
            found = self.decoder.transcribe([sound for _, sound in batch], batch[0][0].language)
            self._keep([job for job, _ in batch], found, perf_counter() - started)
        for job in (job for job in missing.values() if job.is_long):
            self.check_stop()
            samples = self._read(job)
            if samples is not None:
                decoder = self.decoder
                started = perf_counter()
                one = self._decode_long(decoder, samples, job.language)
                self._keep([job], [one], perf_counter() - started)

    def _decode_long(self, decoder: Decoder, samples: Samples, language: str | None) -> Hypothesis:
        options, stop = self.setup.options, self.check_stop
        if not options.voice_activity:
            return decoder.decode_long(samples, language, on_window=stop)
        stretches = find_speech(samples, self.setup.facts.window_samples)
        return decode_stretches(
            decoder,
            [samples[begin:end] for begin, end in stretches],
            language,
            batch_size=options.batch_size,
            on_batch=stop,
        )

    def _report(self, keys: Iterable[str]) -> None:
        self.done += sum(self.utterances_of[key] for key in keys)
        skipped = len(self.preparation.skipped)
        self.progress(self.done + skipped, self.utterances_of.total() + skipped)

    def _batches(self, jobs: Sequence[DecodingJob]) -> Iterator[list[tuple[DecodingJob, Sound]]]:
        """Yield batches of readable audio, each of one language, the longest audio first.

        The order depends only on the jobs, and all batches but the last are full, so that a resumed
        evaluation has the same batches.
        """
        for language in sorted({job.language or "" for job in jobs}):
            alike = [job for job in jobs if (job.language or "") == language]
            batch: list[tuple[DecodingJob, Sound]] = []
            for job in sorted(alike, key=lambda job: (-job.segment.seconds, job.key)):
                sound = self._hear(job)
                if sound is not None:
                    batch.append((job, sound))
                if len(batch) == self.setup.options.batch_size:
                    self.check_stop()
                    yield batch
                    batch = []
            if batch:
                self.check_stop()
                yield batch

    def _hear(self, job: DecodingJob) -> Sound | None:
        """Return an utterance's features; None, and note why, if it cannot be read."""
        key = job.segment, self.setup.facts.sound_key
        sound = self.sounds.get(key)
        if sound is None and (samples := self._read(job)) is not None:
            decoder = self.decoder
            started = perf_counter()
            sound = decoder.sound(samples)
            self._hearing_seconds += perf_counter() - started
            self.sounds.put(key, sound)
        return sound

    def _read(self, job: DecodingJob) -> Samples | None:
        try:
            return read_segment(job.segment)
        except AudioError as error:
            self.unreadable[job.key] = str(error)
            self._report([job.key])
            return None

    def audio_warnings(self, job: DecodingJob) -> tuple[str, ...]:
        """Return the warnings about a decoded utterance's audio."""
        self.check_stop()
        try:
            return (*job.segment.notes, *check_levels(job.segment))
        except AudioError as error:
            return (*job.segment.notes, str(error))

    def _keep(
        self, jobs: Sequence[DecodingJob], found: Sequence[Hypothesis], seconds: float
    ) -> None:
        share = seconds / len(jobs)
        decoded = {
            job.key: Transcript(
                hypothesis=one.text,
                decode_seconds=share,
                detected_language=one.detected_language,
            )
            for job, one in zip(jobs, found, strict=True)
        }
        self.cache.put_many(decoded)
        self.transcripts |= decoded
        self._report(decoded)


def _result(manifest: Manifest, run: _Run) -> DatasetResult:
    preparation, options = run.preparation, run.setup.options
    utterances = []
    for job in preparation.jobs:
        if job.key in run.transcripts:
            utterances.append(_utterance_result(run, job))
        else:
            preparation.skip(job.utterance, run.unreadable[job.key])
    # Levels are checked even if the transcript is from the cache.
    warnings = [
        AudioWarning(index=job.utterance.index, audio=job.utterance.audio, message=message)
        for job in preparation.jobs
        if job.key in run.transcripts
        for message in run.audio_warnings(job)
    ]
    languages = {options.language_of(utterance) for utterance in manifest.utterances}
    sole = next(iter(languages)) if len(languages) == 1 else options.default_language
    return DatasetResult(
        utterances=tuple(utterances),
        skipped=tuple(preparation.skipped[index] for index in sorted(preparation.skipped)),
        audio_warnings=tuple(warnings),
        decoding=run.setup.record(
            *{run.setup.spoken(utterance) for utterance in manifest.utterances},
            long=any(job.is_long for job in preparation.jobs),
        ),
        language=sole,
        manifest_sha256=manifest.manifest_sha256,
    )


def _utterance_result(run: _Run, job: DecodingJob) -> UtteranceResult:
    transcript = run.transcripts[job.key]
    utterance = job.utterance
    return UtteranceResult(
        index=utterance.index,
        audio=utterance.audio,
        reference=utterance.reference,
        hypothesis=transcript.hypothesis,
        audio_seconds=job.segment.seconds,
        decode_seconds=transcript.decode_seconds,
        cached=job.key in run.reused,
        offset_seconds=utterance.offset_seconds,
        channel=utterance.channel,
        language=run.setup.options.language_of(utterance),
        detected_language=transcript.detected_language,
        speaker=utterance.speaker,
        session=utterance.session,
    )
