"""What decodes speech: the seam between running an evaluation and a family of models.

A decoder has two halves. `Facts` are read from a checkpoint's JSON files: what it can be told, and
how long its audio may be. They decide what is asked of it, and under which key a transcript is
cached: an evaluation whose transcripts are all cached loads no weights. `Decoder` is the loaded
checkpoint, which decodes batches.

`families.py` chooses both by config.json and the options. To add one, write the two classes and an
entry there. A decoder reads safetensors only, offline, and runs no code of the checkpoint; equal
audio gives equal text, whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from app.contract.evaluation import DecodingOptions, Dtype

# Mono, float32, at 16 kHz.
Samples = NDArray[np.float32]


class Sound(Protocol):
    """An utterance as a model takes it."""

    @property
    def size_bytes(self) -> int:
        """How much memory it takes."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """What was decoded: the text, and the language if the model detected it."""

    text: str
    detected_language: str | None = None


class Facts(Protocol):
    """What a checkpoint's JSON files say of decoding it."""

    @property
    def languages(self) -> Collection[str]:
        """The languages that it can be told, by code; it detects them otherwise. Empty: none."""
        ...

    @property
    def window_samples(self) -> int:
        """The longest audio that `Decoder.sound` takes."""
        ...

    @property
    def long_form_obstacle(self) -> str | None:
        """Why longer audio cannot be decoded; None if `Decoder.decode_long` does."""
        ...

    @property
    def sound_key(self) -> Hashable:
        """Equal for checkpoints whose `Decoder.sound` gives the same of equal audio."""
        ...

    def honoured(self, options: DecodingOptions) -> DecodingOptions:
        """Return the options with what a request's defaults ask for and this family cannot do.

        (A request that asks for it itself is refused before.)
        """
        ...

    def settings(
        self, options: DecodingOptions, language: str | None, *, long: bool
    ) -> dict[str, Any]:
        """Return the checkpoint's own settings that can change a hypothesis, by name.

        `long` is whether audio is longer than the window.
        """
        ...

    def backend(self, options: DecodingOptions, dtype: Dtype, device: str) -> str:
        """Return the name of what decodes, for the record; needs no weights."""
        ...


class Decoder(Protocol):
    """A loaded checkpoint."""

    def sound(self, samples: Samples) -> Any:
        """Return the Sound of an utterance of at most `Facts.window_samples`.

        The result is the same alone and in a batch.
        """
        ...

    def transcribe(self, sounds: Sequence[Any], language: str | None = None) -> list[Hypothesis]:
        """Return the hypothesis of each sound of a batch, all of one language.

        Models that know several detect the language of each if it is None.
        """
        ...

    def decode_long(
        self,
        samples: Samples,
        language: str | None = None,
        *,
        on_window: Callable[[], None] = lambda: None,
    ) -> Hypothesis:
        """Return the hypothesis of audio longer than the window.

        `on_window` is called before each window; an exception from it ends the decoding.
        """
        ...

    def assign(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the model's weights, in place, by tensors of these names and shapes.

        EvaluationFailedError for a name or a shape that the model does not have.
        """
        ...
