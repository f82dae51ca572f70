"""The two ends of a Whisper: samples to log-mel features, and tokens to text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from app.contract.errors import EvaluationFailedError
from app.sources.architectures.architecture import SAMPLE_RATE
from worker.evaluation.decoder import Samples
from worker.evaluation.whisper.checkpoint import FRAMES_PER_POSITION, WhisperFacts
from worker.loadable import OFFLINE, blaming


@dataclass(frozen=True)
class Sound:
    """An utterance of one window as the model takes it; the seed depends only on the audio.

    `features` are log-mel features, (bins, frames), `mask` has 1 for frames that hold audio.
    """

    features: torch.Tensor
    mask: torch.Tensor
    seed: int

    @property
    def size_bytes(self) -> int:
        """How much memory it takes."""
        return self.features.nbytes + self.mask.nbytes


class Processing:
    """What a checkpoint's decoders share, whatever computes the model between the two ends."""

    def __init__(self, checkpoint: Path, facts: WhisperFacts) -> None:
        """Load the tokenizer; the features' settings are the facts'.

        Any error of the libraries becomes an InvalidCheckpointError.
        """
        self.name, self.facts = checkpoint.name, facts
        with blaming(f"{checkpoint.name}: its tokenizer's files cannot be loaded"):
            self.tokenizer = WhisperTokenizer.from_pretrained(str(checkpoint), **OFFLINE)
        with blaming(f"{checkpoint.name}: preprocessor_config.json cannot be used"):
            self.extractor = WhisperFeatureExtractor(
                feature_size=facts.features.feature_size,
                hop_length=facts.features.hop_length,
                n_fft=facts.features.n_fft,
                sampling_rate=SAMPLE_RATE,
                # Dithering adds noise, which would change transcripts between runs.
                dither=0.0,
            )
        self.window_samples = facts.window_samples

    def sound(self, samples: Samples) -> Sound:
        """Return what the model takes of an utterance, which must fit its window.

        `samples` are float32 at 16 kHz. The result is the same alone and in a batch.
        """
        if len(samples) > self.window_samples:
            raise ValueError(
                f"{len(samples)} samples do not fit the window of {self.window_samples}"
            )
        with blaming(f"{self.name} cannot be decoded with"):
            found = self._features([samples], max_length=self.window_samples, padding="max_length")
        return Sound(found.input_features[0], found.attention_mask[0], seed_of(samples))

    def _features(self, speech: Sequence[Samples], **padding: Any) -> Any:
        return self.extractor(
            list(speech),
            sampling_rate=SAMPLE_RATE,
            return_attention_mask=True,
            return_tensors="pt",
            **padding,
        )

    def _texts(self, hypotheses: Sequence[Sequence[int]]) -> list[str]:
        texts = self.tokenizer.batch_decode(hypotheses, skip_special_tokens=True)
        # A byte-level vocabulary includes NUL, which databases cannot store.
        return [text.replace("\0", "").strip() for text in texts]

    def _check_known(self, language: str | None) -> None:
        """Raise EvaluationFailedError for a language that the checkpoint does not know."""
        if language and language not in self.facts.languages:
            raise EvaluationFailedError(
                f'The checkpoint does not know the language "{language}"; without a language it is '
                "detected."
            )


def seed_of(samples: Samples) -> int:
    """Return a seed that depends only on the audio."""
    return int.from_bytes(hashlib.sha256(samples.tobytes()).digest()[:4])


def until_cut(tokens: list[int], first_time: int, size: int) -> tuple[list[int], int]:
    """Return a window's tokens up to its last complete segment, and the frames to advance.

    As in OpenAI's transcribe.py: what follows the last pair of timestamps is cut off by the
    window's end, and is decoded in the next window. `size` is the window's frames of audio.
    """
    is_time = [token >= first_time for token in tokens]
    pairs = [at for at in range(1, len(tokens)) if is_time[at - 1] and is_time[at]]
    if not pairs or is_time[-2:] == [False, True]:
        return tokens, size
    forward = FRAMES_PER_POSITION * (tokens[pairs[-1] - 1] - first_time)
    return tokens[: pairs[-1]], min(forward, size) or size
