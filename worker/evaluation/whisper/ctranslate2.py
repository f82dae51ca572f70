"""Decodes speech with a Whisper in CTranslate2, the runtime of faster-whisper.

The checkpoint is converted to a temporary folder with the converter that makes `output.also`, so
that what is measured is what an artifact has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from app.contract.errors import EvaluationFailedError, InvalidCheckpointError
from app.contract.evaluation import DecodingOptions, Dtype
from app.contract.formats import Format, quantization_of
from app.sources.architectures.architecture import CONFIG, GENERATION_CONFIG
from app.sources.architectures.whisper.ctranslate2 import obstacle
from worker.conversion import check_converters, convert
from worker.evaluation.decoder import Hypothesis, Samples
from worker.evaluation.json_files import read_json, read_optional
from worker.evaluation.whisper import checkpoint as whisper
from worker.evaluation.whisper.checkpoint import FRAMES_PER_POSITION, WhisperFacts
from worker.evaluation.whisper.processing import Processing, Sound, until_cut
from worker.loadable import blaming

# OpenAI's bound on the first timestamp of a window: one second.
_INITIAL_TIMESTAMP = 50


@dataclass(frozen=True)
class CTranslate2Facts(WhisperFacts):
    """A Whisper's facts, for the runtime and a `format` of weights."""

    format: Format

    def honoured(self, options: DecodingOptions) -> DecodingOptions:
        """Return the options with the dtype of what is computed besides products of weights.

        float16 is computed where a GPU has it, and else in float32.
        """
        if quantization_of(self.format) == "float16":
            return options
        return options.model_copy(update={"dtype": "float32"})

    def backend(self, options: DecodingOptions, dtype: Dtype, device: str) -> str:
        """Return the format's name."""
        return self.format

    def prompt(self, language: str | None, task: str, *, timestamps: bool = False) -> list[int]:
        """Return the tokens that an utterance begins with."""
        tokens = [self.start]
        if self.multilingual and language is not None:
            tokens += [self.languages[language], self.tasks[task]]
        if self.no_timestamps is not None and not timestamps:
            tokens.append(self.no_timestamps)
        return tokens


def read_facts(checkpoint: Path, format_: Format) -> CTranslate2Facts:
    """Return the facts of a model folder.

    Raises what Whisper's raises, InvalidCheckpointError for a setting that CTranslate2 does not
    obey, and ConversionFailedError if this worker does not have it.
    """
    check_converters([format_])
    found = whisper.read_facts(checkpoint)
    document = read_optional(checkpoint, GENERATION_CONFIG)
    if reason := obstacle(read_json(checkpoint, CONFIG), document, checkpoint.name):
        raise InvalidCheckpointError(f"{format_}: {reason}.")
    known = {field.name: getattr(found, field.name) for field in fields(found)}
    return CTranslate2Facts(**known, format=format_)


class CTranslate2Decoder(Processing):
    """A checkpoint that CTranslate2 has loaded."""

    def __init__(
        self, checkpoint: Path, device: str, dtype: Dtype, options: DecodingOptions
    ) -> None:
        """Convert the folder and load it; the dtype is that of `CTranslate2Facts.honoured`.

        Raises ConversionFailedError if it cannot be converted.
        """
        from ctranslate2.models import Whisper

        assert options.backend != "default"
        self.facts: CTranslate2Facts = read_facts(checkpoint, options.backend)
        super().__init__(checkpoint, self.facts)
        self.task = options.task
        own = self.facts.constraints(options.num_beams, timestamps=True)
        self._limit = int(self.facts.config["max_target_positions"])
        self._longest = int(own.get("max_new_tokens", self._limit))
        self._search = {
            "beam_size": options.num_beams,
            "length_penalty": own.get("length_penalty", 1.0),
            "repetition_penalty": own.get("repetition_penalty", 1.0),
            "no_repeat_ngram_size": own.get("no_repeat_ngram_size", 0),
            "max_initial_timestamp_index": own.get(
                "max_initial_timestamp_index", _INITIAL_TIMESTAMP
            ),
            # -1: those of the converted folder, which are the checkpoint's.
            "suppress_tokens": [-1],
            "suppress_blank": True,
        }
        quantization = quantization_of(options.backend)
        where = torch.device(device)
        with TemporaryDirectory(prefix="afluente-") as parent:
            folder = Path(parent, options.backend)
            convert(checkpoint, folder, options.backend)
            try:
                self.model = Whisper(
                    str(folder),
                    device=where.type,
                    device_index=where.index or 0,
                    compute_type="int8_float32" if quantization == "int8" else dtype,
                    intra_threads=torch.get_num_threads(),
                )
            except (RuntimeError, ValueError) as error:
                # Such as a library of CUDA that this worker lacks.
                raise EvaluationFailedError(
                    f"CTranslate2 cannot load {self.name} on {device}: {str(error)[:500]}"
                ) from error

    def transcribe(self, sounds: Sequence[Sound], language: str | None = None) -> list[Hypothesis]:
        """Return the hypothesis of each sound.

        Multilingual models detect the language of each if it is None.
        """
        features = torch.stack([one.features for one in sounds])
        with blaming(f"{self.name} cannot be decoded with"):
            encoded = self._encoded(features)
            spoken = self._languages(encoded, len(sounds), language)
            texts = self._texts(self._generate(encoded, spoken))
        detected = [None] * len(texts) if language else spoken
        return [Hypothesis(*found) for found in zip(texts, detected, strict=True)]

    def decode_long(
        self,
        samples: Samples,
        language: str | None = None,
        *,
        on_window: Callable[[], None] = lambda: None,
    ) -> Hypothesis:
        """Return the hypothesis of one utterance of any length, decoded window by window.

        Each window starts at the last timestamp of the previous one, by OpenAI's rules. A language
        that is None is detected in the first window. `on_window` is called before each window; an
        exception from it ends the decoding.
        """
        first_time = (self.facts.no_timestamps or 0) + 1
        frames = FRAMES_PER_POSITION * self.facts.source_positions
        with blaming(f"{self.name} cannot be decoded with"):
            inputs = self._features([samples], padding="longest", truncation=False)
        sound = inputs.input_features
        found: list[int] = []
        begin, end = 0, sound.shape[2]
        spoken: list[str | None] = []
        while begin < end:
            on_window()
            here = sound[:, :, begin : begin + frames]
            size = here.shape[2]
            with blaming(f"{self.name} cannot be decoded with"):
                encoded = self._encoded(torch.nn.functional.pad(here, (0, frames - size)))
                spoken = spoken or self._languages(encoded, 1, language)
                (tokens,) = self._generate(encoded, spoken, timestamps=True)
            kept, forward = until_cut(tokens, first_time, size)
            found += kept
            begin += forward
        (text,) = self._texts([found])
        return Hypothesis(text, None if language or not spoken else spoken[0])

    def assign(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Raise EvaluationFailedError: converted weights are not replaced."""
        raise EvaluationFailedError("CTranslate2 decodes files only, not merges in memory.")

    def _encoded(self, features: torch.Tensor) -> Any:
        """Return the encoder's output for (batch, bins, frames)."""
        from ctranslate2 import StorageView

        array = np.ascontiguousarray(features.numpy(), dtype=np.float32)
        return self.model.encode(StorageView.from_array(array))

    def _languages(self, encoded: Any, count: int, language: str | None) -> list[str | None]:
        """Return the language of each utterance, detected if it is None; None in English-only."""
        if not self.facts.multilingual:
            return [None] * count
        if language is not None:
            self._check_known(language)
            return [language] * count
        if not self.model.is_multilingual:
            raise EvaluationFailedError(
                f"{self.name}: CTranslate2 detects languages only with Whisper's own vocabularies; "
                "say the language of the dataset."
            )
        return [found[0][0].strip("<|>") for found in self.model.detect_language(encoded)]

    def _generate(
        self, encoded: Any, spoken: Sequence[str | None], *, timestamps: bool = False
    ) -> list[list[int]]:
        """Return the tokens of each utterance, without prompt and end token."""
        prompts = [
            self.facts.prompt(language, self.task, timestamps=timestamps) for language in spoken
        ]
        longest = min(self._longest, self._limit - len(prompts[0]))
        # Of `max_length`, CTranslate2 takes half for new tokens.
        results = self.model.generate(encoded, prompts, max_length=2 * longest, **self._search)
        return [list(result.sequences_ids[0]) for result in results]
