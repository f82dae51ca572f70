"""A real, tiny Whisper as a Hugging Face folder, and variants of it to merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

WEIGHTS = "model.safetensors"


def make_base(folder: Path, **sizes: int) -> Path:
    """Write a random Whisper of a few thousand parameters (or other `sizes`); return its folder."""
    fields = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "num_mel_bins": 8,
        "vocab_size": 51,
        "max_source_positions": 10,
        "max_target_positions": 8,
        "decoder_start_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    config = WhisperConfig(**fields | sizes)
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    write_companions(folder, config.vocab_size, config.num_mel_bins)
    return folder


def write_companions(folder: Path, vocab_size: int, bins: int) -> None:
    """Write a feature extractor, and a tokenizer of `vocab_size` words."""
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": bins}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    words = {f"w{number}": number for number in range(vocab_size)}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def variant(
    source: Path, target: Path, change: Callable[[str, torch.Tensor], torch.Tensor]
) -> Path:
    """Write a copy of a checkpoint with every tensor changed, and return its folder."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != WEIGHTS:
            (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / WEIGHTS)
    changed = {name: change(name, tensor).contiguous() for name, tensor in tensors.items()}
    save_file(changed, target / WEIGHTS, metadata={"format": "pt"})
    return target


def noisy(seed: int, size: float = 0.02) -> Callable[[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + size * torch.randn(tensor.shape, generator=generator)

    return change
