"""Chooses a calibration set's utterances, and prepares them for the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from app.contract.calibration import CalibrationSet, CalibrationSpec
from app.contract.errors import InvalidManifestError, Problem
from app.sources.local import Roots
from app.sources.manifests import Manifest, audio_source
from worker.evaluation.audio import AudioError, Segment, find_segment, read_segment
from worker.evaluation.whisper.checkpoint import WhisperFacts
from worker.evaluation.whisper.decoding import SpeechDecoder
from worker.loadable import blaming

_SHOWN = 3


@dataclass(frozen=True)
class Example:
    """An utterance with its reference; `language` is None for English-only checkpoints."""

    segment: Segment
    text: str
    language: str | None
    task: str

    @property
    def key(self) -> list[Any]:
        """All that decides the model's input."""
        one = self.segment
        place = [one.sound.sha256, one.start, one.frames, one.channel]
        return [*place, self.text, self.language, self.task]


@dataclass(frozen=True)
class ForcedExample:
    """An example as the model takes it, a batch of one.

    Attributes:
        features: log-mel features, (1, bins, frames).
        tokens: prompt, reference and end, (1, tokens).
        prompt: how many of the tokens are given rather than predicted.
    """

    features: torch.Tensor
    tokens: torch.Tensor
    prompt: int

    def logits(self, model: Any) -> torch.Tensor:
        """Return what the model says of each token after the prompt, (tokens, vocabulary)."""
        found = model(
            input_features=self.features.to(model.device),
            decoder_input_ids=self.tokens[:, :-1].to(model.device),
            use_cache=False,
        ).logits
        return torch.as_tensor(found)[0, self.prompt - 1 :]


def choose_examples(
    spec: CalibrationSpec,
    dataset: CalibrationSet,
    manifest: Manifest,
    facts: WhisperFacts,
    roots: Roots,
    check_stop: Callable[[], None],
) -> tuple[list[Example], list[str]]:
    """Return a set's examples, and why others are left out.

    InvalidManifestError if there is none, or if the model must be told a language and is not.
    """
    options = spec.decoding_of(dataset)
    found: list[Example] = []
    reasons: list[str] = []
    for utterance in _spaced(manifest.utterances, spec.utterances):
        check_stop()
        language = options.language_of(utterance) if facts.multilingual else None
        try:
            if not utterance.reference.strip():
                raise AudioError("there is no reference")
            if facts.multilingual and language not in facts.languages:
                raise AudioError(
                    f'the checkpoint does not know the language "{language}"'
                    if language
                    else "no language is given, in the manifest or by `language`"
                )
            segment = find_segment(
                audio_source(manifest, utterance),
                utterance.offset_seconds,
                utterance.duration_seconds,
                channel=utterance.channel,
                roots=roots,
            )
            if segment.seconds > facts.window_seconds:
                raise AudioError(f"longer than the model's window of {facts.window_seconds:g} s")
        except AudioError as error:
            reasons.append(f"{utterance.audio} (utterance {utterance.index + 1}): {error}")
            continue
        found.append(Example(segment, utterance.reference.strip(), language, dataset.task))
    if not found:
        raise InvalidManifestError(
            f"{dataset.uri}: none of the calibration set {dataset.name} can be used: "
            f"{'; '.join(reasons[:_SHOWN])}.",
            problems=[Problem(reason) for reason in reasons[:10]],
        )
    return found, reasons


def teacher_forced(decoder: SpeechDecoder, example: Example) -> ForcedExample | None:
    """Return an example as the model takes it; None if its reference is too long for the model."""
    facts, tokenizer = decoder.facts, decoder.tokenizer
    prompt = [facts.start]
    if facts.multilingual:
        assert example.language is not None
        prompt += [facts.languages[example.language], facts.tasks[example.task]]
    if facts.no_timestamps is not None:
        prompt.append(facts.no_timestamps)
    with blaming(f"{decoder.name}: the tokenizer cannot encode a reference"):
        # Whisper was trained on texts that begin with a space.
        text = tokenizer(" " + example.text, add_special_tokens=False).input_ids
    tokens = [*prompt, *text, facts.ends[0]]
    if len(tokens) - 1 > facts.config["max_target_positions"]:
        return None
    sound = decoder.sound(read_segment(example.segment))
    return ForcedExample(sound.features[None], torch.tensor([tokens]), len(prompt))


def _spaced(utterances: Sequence[Any], most: int) -> list[Any]:
    """Return so many utterances, evenly spaced; all if there are no more."""
    count = min(most, len(utterances))
    return [utterances[number * len(utterances) // count] for number in range(count)]
