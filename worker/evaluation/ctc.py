"""Decodes with models of CTC: the likeliest token of each frame, as transformers' pipeline does.

Utterances are decoded one by one, so that padding changes nothing. Audio longer than 30 s is
decoded in windows that overlap: of the frames within 5 s of a cut, those of the window are taken in
which they have more around them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.contract.errors import InvalidCheckpointError, OutOfMemoryError
from app.contract.evaluation import DecodingOptions, Dtype
from app.sources.architectures.architecture import SAMPLE_RATE, TOKENIZER_CONFIG
from worker.evaluation.decoder import Hypothesis, Samples
from worker.evaluation.json_files import read_json
from worker.evaluation.models import LoadedModel
from worker.evaluation.speech_files import (
    WINDOW_SECONDS,
    Sound,
    SpeechFacts,
    SpeechFiles,
    read_files,
)
from worker.loadable import blaming

_OVERLAP_SECONDS = 5


@dataclass(frozen=True)
class CtcFacts(SpeechFacts):
    """A CTC model's files."""

    @property
    def long_form_obstacle(self) -> str | None:
        """None: windows are joined by their frames."""
        return None

    def honoured(self, options: DecodingOptions) -> DecodingOptions:
        """Return the options with a greedy search."""
        return options.model_copy(update={"num_beams": 1, "search": "default"})

    def settings(
        self, options: DecodingOptions, language: str | None, *, long: bool
    ) -> dict[str, Any]:
        """Return how long audio is divided."""
        if not long:
            return {}
        return {"window_seconds": WINDOW_SECONDS, "overlap_seconds": _OVERLAP_SECONDS}


def read_facts(checkpoint: Path) -> CtcFacts:
    """Return the facts of a model folder; InvalidCheckpointError as `read_files`.

    A vocabulary of many languages (MMS) must say which one is used.
    """
    files = read_files(checkpoint)
    if "vocab.json" in files.architecture.vocabulary:
        tables = read_json(checkpoint, "vocab.json")
        target = files.documents.get(TOKENIZER_CONFIG, {}).get("target_lang")
        nested = all(isinstance(table, dict) for table in tables.values())
        if nested and target not in tables:
            raise InvalidCheckpointError(
                f"{checkpoint.name}/vocab.json has a table for each of {len(tables):,} languages; "
                f"{TOKENIZER_CONFIG} must say with target_lang which of them the weights are of."
            )
    return CtcFacts(files)


class CtcDecoder:
    """A loaded model for CTC."""

    def __init__(
        self, checkpoint: Path, device: str, dtype: Dtype, options: DecodingOptions
    ) -> None:
        """Load the folder offline, from safetensors only.

        Raises InvalidCheckpointError if files are missing or do not fit the config.
        """
        self.name, self.device, self.dtype = checkpoint.name, device, getattr(torch, dtype)
        self.files = read_facts(checkpoint).files
        self.loaded = LoadedModel(
            self.files.kind, checkpoint, self.files.config, device, self.dtype
        )
        with blaming(f"{self.name} cannot be decoded with"):
            self.samples_per_frame = _samples_per_frame(self.files)

    def assign(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the model's weights, in place; raises as LoadedModel."""
        self.loaded.assign(weights)

    def sound(self, samples: Samples) -> Sound:
        """Return what the model takes of an utterance."""
        return self.files.sound(samples)

    def transcribe(self, sounds: Sequence[Sound], language: str | None = None) -> list[Hypothesis]:
        """Return the hypothesis of each sound."""
        with blaming(f"{self.name} cannot be decoded with"):
            return [Hypothesis(self.files.text(self._tokens(sound))) for sound in sounds]

    def decode_long(
        self,
        samples: Samples,
        language: str | None = None,
        *,
        on_window: Callable[[], None] = lambda: None,
    ) -> Hypothesis:
        """Return the hypothesis of audio of any length; calls `on_window` before each window."""
        frame, tokens = self.samples_per_frame, list[int]()
        window, overlap = (
            round(seconds * SAMPLE_RATE / frame) * frame
            for seconds in (WINDOW_SECONDS, _OVERLAP_SECONDS)
        )
        for begin in range(0, len(samples), window - 2 * overlap):
            on_window()
            end = min(begin + window, len(samples))
            with blaming(f"{self.name} cannot be decoded with"):
                found = self._tokens(self.sound(samples[begin:end]))
            first = 0 if begin == 0 else overlap // frame
            if end == len(samples):
                tokens += found[first:]
                break
            tokens += found[first : (window - overlap) // frame]
        with blaming(f"{self.name} cannot be decoded with"):
            return Hypothesis(self.files.text(tokens))

    @torch.inference_mode()
    def _tokens(self, sound: Sound) -> list[int]:
        """Return the likeliest token of each frame."""
        inputs = sound.on(self.device, self.dtype)
        model = self.loaded.model
        try:
            if "generate" in vars(type(model)):  # leaves out frames beyond the audio's end
                tokens = model.generate(**inputs)
            else:
                tokens = model(**inputs).logits.argmax(-1)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"Decoding {WINDOW_SECONDS} s of audio ran out of GPU memory."
            ) from error
        found: list[int] = tokens[0].tolist()
        return found


def _samples_per_frame(files: SpeechFiles) -> int:
    """Return how many samples lie between two frames of the output."""
    config = files.config
    if not hasattr(config, "inputs_to_logits_ratio"):  # Parakeet
        return int(files.extractor.hop_length * config.encoder_config.subsampling_factor)
    ratio = config.inputs_to_logits_ratio
    if getattr(config, "add_adapter", False) and hasattr(config, "conv_stride"):
        ratio *= config.adapter_stride**config.num_adapter_layers
    return int(ratio)
