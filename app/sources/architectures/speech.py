"""Models of speech that transformers' own classes decode; each names its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from app.sources.architectures.architecture import (
    PREPROCESSOR,
    PROCESSOR,
    TOKENIZER_CONFIG,
    Architecture,
    Lack,
)

if TYPE_CHECKING:
    from app.sources.checkpoint import ResolvedCheckpoint

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
        combined = checkpoint.documents.get(PROCESSOR, {})
        if PREPROCESSOR not in checkpoint.documents and "feature_extractor" not in combined:
            said = f"no feature extractor ({PREPROCESSOR} or {PROCESSOR})"
            found.append(Lack((PREPROCESSOR, PROCESSOR), said, merges=True))
        return found

    def summary(self, config: Mapping[str, Any]) -> dict[str, str | None]:
        """Return what any model's says, with the class that has tokenizer and features."""
        return super().summary(config) | {"processor_class": self.processor_class}
