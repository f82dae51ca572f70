"""Decodes batches of speech with a Whisper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature

from app.contract.errors import (
    InvalidCheckpointError,
    OutOfMemoryError,
)
from app.contract.evaluation import DecodingOptions, Dtype
from worker.evaluation.decoder import Hypothesis, Samples
from worker.evaluation.whisper.checkpoint import FRAMES_PER_POSITION, OWN_BACKEND, read_facts
from worker.evaluation.whisper.fallback import TemperatureFallback, until_end
from worker.evaluation.whisper.loading import generation_config, load
from worker.evaluation.whisper.processing import Processing, Sound, seed_of, until_cut
from worker.evaluation.whisper.transcriber import Transcriber
from worker.loadable import blaming


class SpeechDecoder(Processing):
    """A loaded checkpoint; equal input gives equal text on the same kind of machine."""

    def __init__(
        self, checkpoint: Path, device: str, dtype: Dtype, options: DecodingOptions
    ) -> None:
        """Load the folder offline, from safetensors only.

        Raises InvalidCheckpointError if files are missing or do not fit the config.
        """
        super().__init__(checkpoint, read_facts(checkpoint))
        self.device = device
        self.dtype = getattr(torch, dtype)
        self.loaded = load(checkpoint, self.facts, device, self.dtype)
        self.model = self.loaded.model
        self.generation = generation_config(self.facts, options)
        # `generate` falls back to these for settings that are None.
        self.model.generation_config = self.generation
        self.backend = self.facts.backend(options, dtype, device)
        self.transcriber = (
            Transcriber(self.model, self.generation.to_dict())
            if self.backend == OWN_BACKEND
            else None
        )
        self.fallback = (
            TemperatureFallback(
                self.model, self.facts, self.generation, lambda tokens: self._texts([tokens])[0]
            )
            if options.search == "temperature_fallback"
            else None
        )
        self.task = options.task

    def assign(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the model's weights, in place, by tensors of these names and shapes.

        EvaluationFailedError for a name or a shape that the model does not have.
        """
        self.loaded.assign(weights)

    def decode(self, speech: Sequence[Samples], language: str | None = None) -> list[str]:
        """Return the text of each utterance; none may be longer than the checkpoint's window."""
        sounds = [self.sound(samples) for samples in speech]
        return [hypothesis.text for hypothesis in self.transcribe(sounds, language)]

    def transcribe(self, sounds: Sequence[Sound], language: str | None = None) -> list[Hypothesis]:
        """Return the hypothesis of each sound.

        Multilingual models detect the language of each if it is None.
        """
        inputs = BatchFeature(
            {
                "input_features": torch.stack([one.features for one in sounds]),
                "attention_mask": torch.stack([one.mask for one in sounds]),
            }
        )
        with blaming(f"{self.name} cannot be decoded with"):
            if self.transcriber is None:
                languages = self._languages(inputs, language)
                hypotheses = self._generate_window(inputs, languages)
            else:
                hypotheses, languages = self._transcribe(self.transcriber, inputs, language)
            if self.fallback is not None:
                hypotheses = [
                    self.fallback.apply(
                        one.features[None].to(self.device, self.dtype),
                        tokens,
                        self._spoken(spoken),
                        one.seed,
                    )
                    for one, tokens, spoken in zip(sounds, hypotheses, languages, strict=True)
                ]
            texts = self._texts(hypotheses)
        detected = [None] * len(texts) if language else languages
        return [Hypothesis(*found) for found in zip(texts, detected, strict=True)]

    def decode_long(
        self,
        samples: Samples,
        language: str | None = None,
        *,
        on_window: Callable[[], None] = lambda: None,
    ) -> Hypothesis:
        """Return the hypothesis of one utterance of any length, decoded window by window.

        Each window starts at the last timestamp of the previous one. A language that is None is
        detected in the first window. `on_window` is called before each window; an exception from it
        ends the decoding.
        """
        stopped: list[Exception] = []

        def watch(_: object) -> None:
            try:
                on_window()
            except Exception as error:
                stopped.append(error)
                raise

        try:
            with blaming(f"{self.name} cannot be decoded with"):
                inputs = self._features([samples], padding="longest", truncation=False)
                languages = self._languages(inputs, language)
                if self.fallback is None:
                    (tokens,) = self._generate(
                        inputs,
                        languages,
                        return_timestamps=True,
                        condition_on_prev_tokens=False,
                        monitor_progress=watch,
                    )
                else:
                    tokens = self._windows_with_fallback(
                        self.fallback, inputs, languages, seed_of(samples), watch
                    )
                (text,) = self._texts([tokens])
        except InvalidCheckpointError:
            if stopped:
                raise stopped[0] from None
            raise
        return Hypothesis(text, None if language else languages[0])

    def _windows_with_fallback(
        self,
        fallback: TemperatureFallback,
        inputs: Any,
        languages: Sequence[str | None],
        seed: int,
        watch: Callable[[object], None],
    ) -> list[int]:
        """Return the tokens of audio of any length, with temperature fallback in each window."""
        first_time = (self.facts.no_timestamps or 0) + 1
        frames = FRAMES_PER_POSITION * self.facts.source_positions
        sound = inputs.input_features.to(self.device, self.dtype)
        found: list[int] = []
        begin, end = 0, sound.shape[2]
        while begin < end:
            watch(begin)
            here = sound[:, :, begin : begin + frames]
            size = here.shape[2]
            window = torch.nn.functional.pad(here, (0, frames - size))
            one = {"input_features": window, "attention_mask": torch.ones(1, frames)}
            how = {"return_timestamps": True, "force_unique_generate_call": True}
            (tokens,) = self._generate(BatchFeature(one), languages, **how)
            tokens = fallback.apply(
                window, tokens, self._spoken(languages[0]), seed + begin, timestamps=True
            )
            kept, forward = until_cut(tokens, first_time, size)
            found += kept
            begin += forward
        return found

    def _spoken(self, language: str | None) -> dict[str, str | None]:
        if not self.facts.multilingual:
            return {}
        self._check_known(language)
        return {"language": language, "task": self.task}

    @torch.inference_mode()
    def _languages(self, inputs: Any, language: str | None) -> list[str | None]:
        """Return the language of each utterance, detected in its first window if it is None.

        English-only checkpoints have none.
        """
        if language or not self.facts.multilingual:
            return [language] * len(inputs.input_features)
        tokens = self.model.detect_language(
            inputs.input_features.to(self.device, self.dtype),
            generation_config=self.generation,
            num_segment_frames=FRAMES_PER_POSITION * self.facts.source_positions,
        )
        return self._codes(tokens.tolist())

    def _codes(self, tokens: Sequence[int]) -> list[str | None]:
        codes = {token: code for code, token in self.facts.languages.items()}
        return [codes[token] for token in tokens]

    @torch.inference_mode()
    def _transcribe(
        self, transcriber: Transcriber, inputs: Any, language: str | None
    ) -> tuple[list[list[int]], list[str | None]]:
        """Return the tokens of each utterance, and its language as of `_languages`."""
        spoken = self._spoken(language)
        results, spoken_tokens = transcriber.transcribe(
            inputs.input_features, language=spoken.get("language"), task=spoken.get("task")
        )
        detects = self.facts.multilingual and not language
        languages = self._codes(spoken_tokens) if detects else [language] * len(results)
        hypotheses = [tokens or [] for tokens in results]
        divided = [index for index, tokens in enumerate(results) if tokens is None]
        if divided:
            told = [languages[index] for index in divided]
            generated = self._generate_window(_some(inputs, divided), told)
            for index, tokens in zip(divided, generated, strict=True):
                hypotheses[index] = tokens
        return hypotheses, languages

    def _generate_window(self, inputs: Any, languages: Sequence[str | None]) -> list[list[int]]:
        """Return the tokens of utterances of one window each, without prompt and end token.

        If a model divides a window at its very beginning, `generate` would repeat it forever; such
        a window is decoded once.
        """
        how = {"return_timestamps": False}
        try:
            return self._generate(inputs, languages, **how, monitor_progress=_Progress().check)
        except _StuckError:
            found = []
            for index, language in enumerate(languages):
                one = _some(inputs, [index])
                try:
                    found += self._generate(
                        one, [language], **how, monitor_progress=_Progress().check
                    )
                except _StuckError:
                    found += self._generate(one, [language], **how, force_unique_generate_call=True)
            return found

    @torch.inference_mode()
    def _generate(
        self, inputs: Any, languages: Sequence[str | None], **how: Any
    ) -> list[list[int]]:
        """Return the tokens of each utterance; multilingual checkpoints are told its language."""
        spoken: dict[str, Any] = {}
        for language in languages:
            spoken = self._spoken(language)
        if spoken:
            spoken["language"] = list(languages)
        try:
            tokens = self.model.generate(
                inputs.input_features.to(self.device, self.dtype),
                attention_mask=inputs.attention_mask.to(self.device),
                generation_config=self.generation,
                **spoken,
                **how,
            )
        except torch.OutOfMemoryError as error:
            size = len(inputs.input_features)
            raise OutOfMemoryError(
                f"Decoding {size} utterances at once with {self.generation.num_beams} beams ran "
                "out of GPU memory; choose a smaller batch_size."
            ) from error
        return [until_end(row, self.facts.ends) for row in tokens.tolist()]


class _StuckError(Exception):
    """`generate` repeats a window."""


class _Progress:
    """Checks that every window of a `generate` begins later than the previous one."""

    def __init__(self) -> None:
        self.seen: torch.Tensor | None = None

    def check(self, progress: torch.Tensor) -> None:
        """Raise _StuckError if no utterance has advanced; `progress` is (utterances, 2) frames."""
        if self.seen is not None and torch.equal(progress, self.seen):
            raise _StuckError
        self.seen = progress.clone()


def _some(inputs: Any, indices: list[int]) -> Any:
    return BatchFeature(
        {name: inputs[name][indices] for name in ("input_features", "attention_mask")}
    )
