"""What transformers' own classes need of a model folder: config, feature extractor, tokenizer.

They are loaded by the classes that the architecture names, never by those that the files name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from numpy import pad

from app.contract.errors import InvalidCheckpointError
from app.contract.evaluation import DecodingOptions, Dtype
from app.sources.architectures.architecture import (
    CONFIG,
    GENERATION_CONFIG,
    PREPROCESSOR,
    PROCESSOR,
    SAMPLE_RATE,
    TOKENIZER_CONFIG,
)
from app.sources.architectures.registry import architecture_of
from app.sources.architectures.speech import SENTENCEPIECE, SpeechModel, features_of
from worker.evaluation.decoder import Samples
from worker.evaluation.json_files import read_json, read_optional
from worker.loadable import OFFLINE, blaming

# Attention takes quadratic memory, and encoder-decoders are trained on no longer audio.
WINDOW_SECONDS = 30
# Convolutions need some frames: shorter audio is followed by silence.
_LEAST_SAMPLES = SAMPLE_RATE // 10


@dataclass(frozen=True)
class Sound:
    """The tensors that a model takes of an utterance, by name, each a batch of one."""

    inputs: Mapping[str, torch.Tensor]

    @property
    def size_bytes(self) -> int:
        """How much memory they take."""
        return sum(tensor.nbytes for tensor in self.inputs.values())

    def on(self, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return the tensors on a device, numbers with a fraction in this dtype."""
        return {
            name: tensor.to(device, dtype if tensor.is_floating_point() else None)
            for name, tensor in self.inputs.items()
        }


@dataclass(frozen=True)
class SpeechFiles:
    """A folder's JSON files, and the classes that load them."""

    checkpoint: Path
    architecture: SpeechModel
    documents: Mapping[str, Mapping[str, Any]]

    @property
    def sound_key(self) -> Hashable:
        """The feature extractor's class and settings."""
        settings = json.dumps(features_of(self.documents)[1], sort_keys=True)
        return self.architecture.extractor_class, settings

    @property
    def name(self) -> str:
        """The folder's name, for errors."""
        return self.checkpoint.name

    @property
    def kind(self) -> Any:
        """The model's class."""
        return getattr(transformers, self.architecture.model_class)

    @cached_property
    def config(self) -> Any:
        """The model's config."""
        with blaming(f"{self.name}: config.json cannot be loaded"):
            return self.kind.config_class.from_pretrained(str(self.checkpoint), **OFFLINE)

    @cached_property
    def extractor(self) -> Any:
        """The feature extractor."""
        kind = getattr(transformers, self.architecture.extractor_class)
        with blaming(f"{self.name}: its feature extractor cannot be loaded"):
            return kind.from_pretrained(str(self.checkpoint), **OFFLINE)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        kind = getattr(transformers, self.architecture.tokenizer_class)
        # SentencePiece's settings may name another file.
        has_pieces = SENTENCEPIECE in self.architecture.vocabulary
        plain: dict[str, Any] = {"sp_model_kwargs": {}} if has_pieces else {}
        with blaming(f"{self.name}: its tokenizer's files cannot be loaded"):
            return kind.from_pretrained(str(self.checkpoint), **plain, **OFFLINE)

    def sound(self, samples: Samples) -> Sound:
        """Return what the model takes of some audio."""
        short = _LEAST_SAMPLES - len(samples)
        with blaming(f"{self.name} cannot be decoded with"):
            found = self.extractor(
                pad(samples, (0, short)) if short > 0 else samples,
                sampling_rate=SAMPLE_RATE,
                return_tensors="pt",
                return_attention_mask=True,
            )
        return Sound(dict(found))

    def text(self, tokens: list[int], **how: Any) -> str:
        """Return the text of tokens."""
        # A byte-level vocabulary includes NUL, which databases cannot store.
        return str(self.tokenizer.decode(tokens, **how)).replace("\0", "").strip()


@dataclass(frozen=True)
class SpeechFacts:
    """What is the same for all models that transformers' own classes decode with."""

    files: SpeechFiles

    @property
    def languages(self) -> Collection[str]:
        """None: such a model is told none."""
        return ()

    @property
    def window_samples(self) -> int:
        """The longest audio that is decoded at once."""
        return WINDOW_SECONDS * SAMPLE_RATE

    @property
    def sound_key(self) -> Hashable:
        """The feature extractor's class and settings."""
        return self.files.sound_key

    def backend(self, options: DecodingOptions, dtype: Dtype, device: str) -> str:
        """Return transformers."""
        return "transformers"


def read_files(checkpoint: Path) -> SpeechFiles:
    """Return a folder's files.

    Raises InvalidCheckpointError with file and field for unreadable JSON and invalid values, and
    for a folder without tokenizer or feature extractor.
    """
    config = read_json(checkpoint, CONFIG)
    architecture = architecture_of(config)
    assert isinstance(architecture, SpeechModel)
    names = (PREPROCESSOR, PROCESSOR, TOKENIZER_CONFIG, GENERATION_CONFIG)
    read = {name: read_optional(checkpoint, name) for name in names}
    documents = {name: document for name, document in read.items() if document is not None}
    absent = [name for name in architecture.vocabulary if not (checkpoint / name).exists()]
    absent += [] if features_of(documents)[1] else [f"{PREPROCESSOR} or {PROCESSOR}"]
    if absent:
        raise InvalidCheckpointError(
            f"{checkpoint.name} has no {' and no '.join(absent)}; copy tokenizer and feature "
            "extractor from the model that was fine-tuned."
        )
    if problems := architecture.decoding_problems(config, documents):
        raise InvalidCheckpointError(f"{checkpoint.name}: {'; '.join(problems)}.")
    return SpeechFiles(checkpoint, architecture, documents)
