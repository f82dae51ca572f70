"""Encoder-decoders besides Whisper that transformers has a processor for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from app.contract.problems import shown
from app.sources.architectures.architecture import CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG
from app.sources.architectures.speech import SENTENCEPIECE, SpeechModel
from app.sources.architectures.whisper import generation
from app.sources.architectures.whisper.generation import GenerationSettings


class EncoderDecoder(SpeechModel):
    """A model that writes text token by token; the subclasses name its classes in transformers."""

    task = "seq2seq"
    searches_beams = True
    positions: ClassVar[str]
    """The field of config.json that says how many tokens a text may have."""

    def decoding_problems(
        self, config: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]
    ) -> list[str]:
        """Return what any model of speech says, and settings that no search obeys."""
        problems = super().decoding_problems(config, documents)
        if documents.get(TOKENIZER_CONFIG, {}).get("lang_codes") is not None:
            problems.append(
                f"{TOKENIZER_CONFIG} has lang_codes, of a model that translates; only models that "
                "write the language that they hear are decoded"
            )
        sizes = {field: config.get(field) for field in ("vocab_size", self.positions)}
        problems += [
            f"config.json says {field} {shown(size)}; it needs a number of at least 2"
            for field, size in sizes.items()
            if type(size) is not int or size < 2
        ]
        if problems:
            return problems
        said = GENERATION_CONFIG if GENERATION_CONFIG in documents else CONFIG
        stated = documents.get(GENERATION_CONFIG, config)
        problems = generation.generation_problems(stated, config, said)
        settings = None if problems else search_settings(config, documents)
        if settings and (settings.decoder_start_token_id is None or not settings.ends):
            problems = [f"{said} needs decoder_start_token_id and eos_token_id"]
        return problems


class Moonshine(EncoderDecoder):
    """Moonshine, which writes the language that it was trained on."""

    name, model_class = "moonshine", "MoonshineForConditionalGeneration"
    processor_class = "Wav2Vec2Processor"
    tokenizer_class = "PreTrainedTokenizerFast"
    tokenizers = ("PreTrainedTokenizerFast", "TokenizersBackend")
    extractor_class = "Wav2Vec2FeatureExtractor"
    vocabulary = ("tokenizer.json",)
    positions = "max_position_embeddings"


class SpeechToText(EncoderDecoder):
    """fairseq's Speech2Text, of one language."""

    name, model_class = "speech_to_text", "Speech2TextForConditionalGeneration"
    processor_class = "Speech2TextProcessor"
    tokenizer_class = "Speech2TextTokenizer"
    tokenizers = ("Speech2TextTokenizer",)
    extractor_class = "Speech2TextFeatureExtractor"
    vocabulary = ("vocab.json", SENTENCEPIECE)
    positions = "max_target_positions"


ENCODER_DECODERS: tuple[EncoderDecoder, ...] = (Moonshine(), SpeechToText())


def search_settings(
    config: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]
) -> GenerationSettings:
    """Return the settings of generation_config.json; without one those of config.json."""
    stated = documents.get(GENERATION_CONFIG, config)
    settings = generation.settings_of(stated, config)
    start = settings.decoder_start_token_id
    if start is None:
        start = next(
            (
                token
                for token in (stated.get("bos_token_id"), config.get("bos_token_id"))
                if type(token) is int and 0 <= token < config["vocab_size"]
            ),
            None,
        )
    # Whisper counts new tokens, all other models the first one too.
    longest = settings.max_length and settings.max_length - 1
    changes = {"decoder_start_token_id": start, "max_length": longest or None}
    return settings.model_copy(update=changes)
