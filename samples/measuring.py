"""Word error rates of a checkpoint: transformers' greedy decoding, float32, jiwer."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from samples.domains import Utterance
from samples.speaking import SAMPLE_RATE


def transcribe(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    utterances: Sequence[Utterance],
) -> list[str]:
    """Return the model's transcript of each utterance."""
    mel = processor.feature_extractor(
        [utterance.samples for utterance in utterances],
        sampling_rate=SAMPLE_RATE,
        return_attention_mask=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        tokens = model.generate(mel.input_features, attention_mask=mel.attention_mask)
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


def word_error_rate(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    utterances: Sequence[Utterance],
) -> float:
    """Return the corpus-level word error rate, a fraction."""
    references = [utterance.text for utterance in utterances]
    return float(jiwer.wer(references, transcribe(model, processor, utterances)))
