"""Encoder-decoders besides Whisper that transformers has a processor for."""

from __future__ import annotations

from typing import ClassVar

from app.sources.architectures.speech import SENTENCEPIECE, SpeechModel


class EncoderDecoder(SpeechModel):
    """A model that writes text token by token; the subclasses name its classes in transformers."""

    task = "seq2seq"
    searches_beams = True
    positions: ClassVar[str]
    """The field of config.json that says how many tokens a text may have."""


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
