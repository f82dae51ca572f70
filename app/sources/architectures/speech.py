"""Models of speech that transformers' own classes decode; each names its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from app.contract.problems import shown
from app.sources.architectures.architecture import (
    PREPROCESSOR,
    PROCESSOR,
    SAMPLE_RATE,
    TOKENIZER_CONFIG,
    Architecture,
    Lack,
)

if TYPE_CHECKING:
    from app.sources.checkpoint import ResolvedCheckpoint

# More than any feature extractor has of anything: filters, frames, samples of a Fourier transform.
_MOST = 100_000
SENTENCEPIECE = "sentencepiece.bpe.model"
_OF_TOKENIZER = (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")


class SpeechModel(Architecture):
    """A model of speech with a tokenizer and a feature extractor.

    It merges without these two, but is not decoded without them.
    """

    processor_class: ClassVar[str]
    tokenizer_class: ClassVar[str]
    tokenizers: ClassVar[tuple[str, ...]]
    """The names under which tokenizer_config.json may have the tokenizer's class."""

    extractor_class: ClassVar[str]
    vocabulary: ClassVar[tuple[str, ...]]
    """The files without which there is no tokenizer."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Return whether it is of this model with this head."""
        classes = config.get("architectures")
        return config.get("model_type") == self.name and classes == [self.model_class]

    def lacks(self, checkpoint: ResolvedCheckpoint) -> list[Lack]:
        """Return which of tokenizer and feature extractor are lacking."""
        files, found = {file.name for file in checkpoint.files}, []
        if not files.issuperset(self.vocabulary):
            said = f"no tokenizer ({' and '.join(self.vocabulary)})"
            found.append(Lack((*self.vocabulary, *_OF_TOKENIZER), said, merges=True))
        if not features_of(checkpoint.documents)[1]:
            said = f"no feature extractor ({PREPROCESSOR} or {PROCESSOR})"
            found.append(Lack((PREPROCESSOR, PROCESSOR), said, merges=True))
        return found

    def decoding_problems(
        self, config: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]
    ) -> list[str]:
        """Return what is wrong with tokenizer_config.json and the feature extractor."""
        problems = []
        kind = documents.get(TOKENIZER_CONFIG, {}).get("tokenizer_class")
        if kind not in (None, *self.tokenizers):
            problems.append(
                f"{TOKENIZER_CONFIG} has tokenizer_class {shown(kind)}; {self.model_class} is "
                f"decoded with {' or '.join(self.tokenizers)}"
            )
        name, settings = features_of(documents)
        rate = settings.get("sampling_rate", SAMPLE_RATE)
        if rate != SAMPLE_RATE:
            problems.append(
                f"{name} has sampling_rate {shown(rate)}; only models of {SAMPLE_RATE:,} Hz are "
                "decoded"
            )
        return problems + [
            f"{name} has {field} {shown(value)}, more than {_MOST:,}"
            for field, value in settings.items()
            if isinstance(value, int | float) and abs(value) > _MOST
        ]

    def summary(self, config: Mapping[str, Any]) -> dict[str, str | None]:
        """Return what any model's says, with the class that has tokenizer and features."""
        return super().summary(config) | {"processor_class": self.processor_class}


def features_of(documents: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """Return the settings of the feature extractor, and the file that has them; {} without one."""
    # transformers 5 writes processor_config.json, transformers 4 preprocessor_config.json.
    combined = documents.get(PROCESSOR, {}).get("feature_extractor")
    if isinstance(combined, dict):
        return PROCESSOR, combined
    return PREPROCESSOR, documents.get(PREPROCESSOR, {})
