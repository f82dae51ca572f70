"""Decodes with encoder-decoders of transformers: the hypotheses of its `generate`.

Utterances are decoded one by one, so that padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from app.contract.errors import EvaluationFailedError, OutOfMemoryError
from app.contract.evaluation import DecodingOptions, Dtype
from app.sources.architectures.architecture import CONFIG, GENERATION_CONFIG
from app.sources.architectures.seq2seq import EncoderDecoder, search_settings
from app.sources.architectures.whisper import generation
from app.sources.architectures.whisper.generation import GenerationSettings
from worker.evaluation.decoder import Hypothesis, Samples
from worker.evaluation.json_files import read_json
from worker.evaluation.models import LoadedModel
from worker.evaluation.speech_files import WINDOW_SECONDS, Sound, SpeechFacts, read_files
from worker.loadable import blaming

_FORCED = ("forced_bos_token_id", "forced_eos_token_id")


@dataclass(frozen=True)
class Seq2SeqFacts(SpeechFacts):
    """An encoder-decoder's files, and the settings of its searches.

    `config` is config.json; `forced` are the tokens that each text begins and ends with.
    """

    config: Mapping[str, Any]
    generation: GenerationSettings
    forced: Mapping[str, int]

    @property
    def long_form_obstacle(self) -> str | None:
        """There are no timestamps, by which windows could be joined."""
        return (
            f"{self.files.architecture.model_class} hears at most {WINDOW_SECONDS} s and writes "
            "no timestamps; divide the recording in the manifest, with offset and duration"
        )

    def honoured(self, options: DecodingOptions) -> DecodingOptions:
        """Return the options: all that was asked for is possible."""
        return options

    def settings(
        self, options: DecodingOptions, language: str | None, *, long: bool
    ) -> dict[str, Any]:
        """Return the constraints of the search."""
        found = generation.constraints(
            self.generation, self._sizes, num_beams=options.num_beams, prompt=1
        )
        return found | dict(self.forced)

    def generation_config(self, options: DecodingOptions) -> GenerationConfig:
        """Return a deterministic search with the requested width and the settings."""
        own = self.settings(options, None, long=False)
        end = self.generation.ends[0]
        pad = self.config.get("pad_token_id")
        chosen = {
            "num_beams": options.num_beams,
            "num_return_sequences": 1,
            "do_sample": False,
            "decoder_start_token_id": self.generation.decoder_start_token_id,
            "eos_token_id": end,
            "pad_token_id": pad if type(pad) is int else end,
        }
        if "max_new_tokens" not in own:
            chosen["max_length"] = self._sizes["max_target_positions"]
        return GenerationConfig(**chosen | own)

    @property
    def _sizes(self) -> dict[str, int]:
        architecture = self.files.architecture
        assert isinstance(architecture, EncoderDecoder)
        positions = self.config[architecture.positions]
        return {"vocab_size": self.config["vocab_size"], "max_target_positions": positions}


def read_facts(checkpoint: Path) -> Seq2SeqFacts:
    """Return the facts of a model folder; InvalidCheckpointError as `read_files`."""
    files = read_files(checkpoint)
    config = read_json(checkpoint, CONFIG)
    stated = files.documents.get(GENERATION_CONFIG, config)
    forced = {name: stated[name] for name in _FORCED if type(stated.get(name)) is int}
    return Seq2SeqFacts(files, config, search_settings(config, files.documents), forced)


class Seq2SeqDecoder:
    """A loaded encoder-decoder."""

    def __init__(
        self, checkpoint: Path, device: str, dtype: Dtype, options: DecodingOptions
    ) -> None:
        """Load the folder offline, from safetensors only.

        Raises InvalidCheckpointError if files are missing or do not fit the config.
        """
        self.name, self.device, self.dtype = checkpoint.name, device, getattr(torch, dtype)
        self.facts = read_facts(checkpoint)
        self.files = self.facts.files
        self.loaded = LoadedModel(
            self.files.kind,
            checkpoint,
            self.files.config,
            device,
            self.dtype,
            generation_config=GenerationConfig(),
        )
        with blaming(f"{self.name}: {GENERATION_CONFIG} cannot be used"):
            self.generation = self.facts.generation_config(options)
        # `generate` falls back to these for settings that are None.
        self.loaded.model.generation_config = self.generation

    def assign(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the model's weights, in place; raises as LoadedModel."""
        self.loaded.assign(weights)

    def sound(self, samples: Samples) -> Sound:
        """Return what the model takes of an utterance."""
        return self.files.sound(samples)

    def transcribe(self, sounds: Sequence[Sound], language: str | None = None) -> list[Hypothesis]:
        """Return the hypothesis of each sound."""
        with blaming(f"{self.name} cannot be decoded with"):
            return [
                Hypothesis(self.files.text(self._tokens(sound), skip_special_tokens=True))
                for sound in sounds
            ]

    def decode_long(
        self,
        samples: Samples,
        language: str | None = None,
        *,
        on_window: Callable[[], None] = lambda: None,
    ) -> Hypothesis:
        """Raise EvaluationFailedError: the facts say why."""
        raise EvaluationFailedError(f"{self.name}: {self.facts.long_form_obstacle}.")

    @torch.inference_mode()
    def _tokens(self, sound: Sound) -> list[int]:
        try:
            tokens = self.loaded.model.generate(
                **sound.on(self.device, self.dtype), generation_config=self.generation
            )
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"Decoding an utterance with {self.generation.num_beams} beams ran out of GPU "
                "memory; use fewer."
            ) from error
        found: list[int] = tokens[0].tolist()
        return found
