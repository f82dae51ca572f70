"""Checkpoints for the stack: some that can be decoded, some that are slow to merge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.tiny_whisper import noisy, variant, write_companions
from tests.worker.evaluation.conftest import build_checkpoint


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two experts that can be decoded, and two sounds with their texts."""
    folder = tmp_path_factory.mktemp("models")
    build_checkpoint(folder / "base", multilingual=True, timestamps=False)
    for seed, name in enumerate(("telephone", "parliament"), start=1):
        variant(folder / "base", folder / name, noisy(seed))
    speech = folder / "speech"
    speech.mkdir()
    lines = []
    for number, text in enumerate(("um dois", "três")):
        sound = np.sin(np.arange(16_000) * (0.05 + 0.03 * number)).astype(np.float32)
        soundfile.write(speech / f"{number}.wav", sound, 16_000)
        lines.append(json.dumps({"audio_filepath": f"{number}.wav", "text": text}))
    (speech / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two experts whose merge by singular vectors takes seconds."""
    folder = tmp_path_factory.mktemp("heavy")
    config = WhisperConfig(
        d_model=256, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=1024, decoder_ffn_dim=1024, num_mel_bins=8,
        vocab_size=51, max_source_positions=10, max_target_positions=8, decoder_start_token_id=1,
        bos_token_id=2, eos_token_id=2, pad_token_id=2, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(folder / "base")
    write_companions(folder / "base", vocab_size=51, bins=8)
    for seed in (1, 2):
        variant(folder / "base", folder / f"expert-{seed}", noisy(seed))
    return folder
