"""A Whisper of 0.3 million parameters: its tokenizer, processor, configuration and directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from samples.digits import WORDS

WINDOW_SECONDS = 2
MEL_BINS = 40
END, START = "<|endoftext|>", "<|startoftranscript|>"
# `<|notimestamps|>` is last: for Whisper, every later id is a timestamp.
SPECIAL_TOKENS = (END, START, "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
LONGEST_TRANSCRIPT = 24


def _trained_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a byte-level BPE with one token for every digit word, including its space."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    bpe.train_from_iterator([" " + word for word in WORDS], trainer)
    model = json.loads(bpe.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def build_processor() -> WhisperProcessor:
    """Return the processor: 40 mels over a window of 2 s, the digit words' tokenizer."""
    vocabulary, merges = _trained_bpe()
    tokenizer = WhisperTokenizer(
        vocab=vocabulary,
        merges=merges,
        pad_token=END,
        model_max_length=LONGEST_TRANSCRIPT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    tokenizer.set_prefix_tokens()
    extractor = WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=WINDOW_SECONDS)
    return WhisperProcessor(extractor, tokenizer)


def build_model(processor: WhisperProcessor, seed: int) -> WhisperForConditionalGeneration:
    """Return the untrained model; like English-only Whisper models it has no language tokens."""
    end, start, previous, _, no_timestamps = processor.tokenizer.convert_tokens_to_ids(
        list(SPECIAL_TOKENS)
    )
    config = WhisperConfig(
        vocab_size=len(processor.tokenizer),
        num_mel_bins=MEL_BINS,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        max_source_positions=WINDOW_SECONDS * 50,
        max_target_positions=LONGEST_TRANSCRIPT,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        prev_sot_token_id=previous,
        no_timestamps_token_id=no_timestamps,
        is_multilingual=False,
        return_timestamps=False,
        max_length=LONGEST_TRANSCRIPT,
    )
    return model


def _edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    text = json.dumps(change(json.loads(file.read_text())), indent=2, sort_keys=True)
    file.write_text(text + "\n")


def _with_additional_special_tokens(config: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer's settings with a name that transformers 4 and 5 read."""
    return config | {"additional_special_tokens": config.pop("extra_special_tokens")}


def save_checkpoint(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, directory: Path
) -> None:
    """Write a complete Hugging Face directory, readable by transformers 4 and 5."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    # transformers 5 only writes processor_config.json and tokenizer.json; 4 needs these files.
    processor.feature_extractor.save_pretrained(directory)
    processor.tokenizer.save_vocabulary(str(directory))
    _edit(directory / "config.json", lambda config: config | {"torch_dtype": config["dtype"]})
    _edit(directory / "tokenizer_config.json", _with_additional_special_tokens)
    for file in directory.iterdir():
        file.chmod(0o644)
