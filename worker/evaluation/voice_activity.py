"""Finds the speech in long audio before it is decoded; an optional part of the worker.

As WhisperX does (arXiv 2303.00747): audio is cut where nobody speaks, and stretches of speech are
joined as long as they fit the checkpoint's window. Each is decoded like an utterance of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from app.contract.errors import EvaluationFailedError
from app.contract.evaluation import VoiceActivity
from app.reports.scoring import UNSPACED_LANGUAGES
from app.sources.architectures.architecture import SAMPLE_RATE
from worker.evaluation.decoder import Decoder, Hypothesis, Samples

_LIBRARY = "silero-vad"


@lru_cache(maxsize=1)
def voice_activity() -> VoiceActivity:
    """Return how speech is found here; EvaluationFailedError if the library is not installed."""
    try:
        return VoiceActivity(silero_vad=version(_LIBRARY), onnxruntime=version("onnxruntime"))
    except PackageNotFoundError as error:
        raise EvaluationFailedError(
            f"voice_activity needs {error.name}, which this worker does not have; install "
            "afluente[vad] on every worker, or leave voice_activity out."
        ) from None


def find_speech(samples: Samples, window_samples: int) -> list[tuple[int, int]]:
    """Return (begin, end) of stretches with speech in them, each of at most one window.

    `samples` are float32 at 16 kHz. Silence around and between stretches is left out.
    """
    rules = voice_activity()
    model, timestamps = _model()
    found = timestamps(
        samples,
        model,
        sampling_rate=SAMPLE_RATE,
        max_speech_duration_s=window_samples / SAMPLE_RATE,
        threshold=rules.threshold,
        min_speech_duration_ms=round(1000 * rules.min_speech_seconds),
        min_silence_duration_ms=round(1000 * rules.min_silence_seconds),
        speech_pad_ms=round(1000 * rules.padding_seconds),
    )
    return _joined([(one["start"], one["end"]) for one in found], window_samples)


def decode_stretches(
    decoder: Decoder,
    stretches: Sequence[Samples],
    language: str | None,
    *,
    batch_size: int,
    on_batch: Callable[[], None],
) -> Hypothesis:
    """Return the hypothesis of an utterance from its stretches of speech; empty without any.

    A language that is None is detected in the first stretch. `on_batch` is called before each
    batch, and may raise to stop.
    """
    spoken, found = language, list[Hypothesis]()
    while len(found) < len(stretches):
        on_batch()
        # The first one tells the language of the others.
        count = batch_size if spoken or found else 1
        batch = [decoder.sound(one) for one in stretches[len(found) : len(found) + count]]
        found += decoder.transcribe(batch, spoken)
        spoken = language or found[0].detected_language
    between = "" if spoken in UNSPACED_LANGUAGES else " "
    text = between.join(one.text for one in found if one.text)
    return Hypothesis(text, None if language else spoken)


def _joined(stretches: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Return neighbouring stretches as one, as long as they have at most `most` samples."""
    joined: list[tuple[int, int]] = []
    for begin, end in stretches:
        if joined and end - joined[-1][0] <= most:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


@lru_cache(maxsize=1)
def _model() -> tuple[Any, Callable[..., list[dict[str, int]]]]:
    threads = torch.get_num_threads()
    from silero_vad import get_speech_timestamps_sequence, load_silero_vad

    # Importing it sets one thread for all of torch.
    torch.set_num_threads(threads)
    return load_silero_vad(sequence=True), get_speech_timestamps_sequence
