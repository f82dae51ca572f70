"""Whisper checkpoints with random weights and a 2 s window, and audio files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from app.sources.manifests import Manifest, read_manifest

END, START = "<|endoftext|>", "<|startoftranscript|>"
SPECIAL = (END, START, "<|en|>", "<|pt|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")
POSITIONS = 100
MakeManifest = Callable[..., Manifest]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build_checkpoint(
    folder: Path, *, multilingual: bool, timestamps: bool, seed: int = 0, **shape: int
) -> Path:
    """Write a Whisper, of another `shape` (fields of its config) if asked to."""
    torch.manual_seed(seed)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = WhisperTokenizer(
        vocab={letter: index for index, letter in enumerate(letters)}, merges=[], pad_token=END
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    if timestamps:
        seconds = [f"<|{position / 50:.2f}|>" for position in range(POSITIONS + 1)]
        tokenizer.add_tokens([AddedToken(token, special=False) for token in seconds])
    end, start, en, pt, translate, transcribe, plain = tokenizer.convert_tokens_to_ids(SPECIAL)
    fields = {
        "num_mel_bins": 40,
        "encoder_layers": 1,
        "decoder_layers": 1,
    } | shape
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=POSITIONS,
        max_target_positions=16,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        # Large weights, so that different sounds give different words.
        init_std=0.6,
        **fields,
    )
    model = WhisperForConditionalGeneration(config)
    generation = {"is_multilingual": multilingual, "no_timestamps_token_id": plain}
    if multilingual:
        generation["lang_to_id"] = {"<|en|>": en, "<|pt|>": pt}
        generation["task_to_id"] = {"translate": translate, "transcribe": transcribe}
    model.generation_config = GenerationConfig.from_dict(
        {
            **generation,
            "decoder_start_token_id": start,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "max_length": 16,
        }
    )
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=2)
    model.save_pretrained(folder)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows neither languages nor timestamps."""
    folder = tmp_path_factory.mktemp("english")
    return build_checkpoint(folder, multilingual=False, timestamps=False)


@pytest.fixture(scope="session")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with languages, tasks and timestamps."""
    folder = tmp_path_factory.mktemp("multilingual")
    return build_checkpoint(folder, multilingual=True, timestamps=True)


def sound(seconds: float, *, rate: int = 16_000, pitch: float = 220.0) -> np.ndarray:
    """Return a voice-like sound: harmonics of a gliding pitch, in syllables."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * pitch * (time + 0.1 * np.sin(2 * np.pi * time))
    harmonics = sum(np.sin(n * phase) / n for n in range(1, 8))
    return (0.2 * harmonics * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time))).astype(np.float32)


@pytest.fixture
def make_manifest(tmp_path: Path) -> MakeManifest:
    """Return a function that writes sounds of the given lengths and their manifest."""

    def make(*seconds: float, extra: tuple[dict[str, object], ...] = (), **fields: object):
        lines = []
        for index, length in enumerate(seconds):
            name = f"{index}.flac"
            soundfile.write(tmp_path / name, sound(length, pitch=120 + 40 * index), 16_000)
            lines.append({"audio_filepath": name, "text": f"words {index}", **fields})
        path = tmp_path / "manifest.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in (*lines, *extra)))
        return read_manifest(path, label="set")

    return make


@pytest.fixture(scope="session")
def make_sound() -> Callable[..., np.ndarray]:
    """Return `sound`: seconds, rate and pitch in, samples out."""
    return sound
