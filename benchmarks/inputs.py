"""Whisper-shaped checkpoints to merge: a base and experts, seeded, low rank plus noise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from app.sources.architectures.whisper.shapes import expected_shapes

WEIGHTS = "model.safetensors"
# The task vectors: of rank 8 with a falling spectrum, about 2 % of the base, plus noise.
_RANK, _SIZE, _NOISE = 8, 0.02, 0.1


@dataclass(frozen=True)
class Shape:
    """One of Whisper's sizes."""

    name: str
    d_model: int
    layers: int
    vocabulary: int
    mels: int = 80

    @property
    def config(self) -> dict[str, object]:
        """The config.json of this size."""
        heads = self.d_model // 64
        return {
            "model_type": "whisper",
            "architectures": ["WhisperForConditionalGeneration"],
            "d_model": self.d_model,
            "encoder_layers": self.layers,
            "decoder_layers": self.layers,
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
            "encoder_ffn_dim": 4 * self.d_model,
            "decoder_ffn_dim": 4 * self.d_model,
            "num_mel_bins": self.mels,
            "vocab_size": self.vocabulary,
            "max_source_positions": 1500,
            "max_target_positions": 448,
            "tie_word_embeddings": True,
            "dtype": "float32",
        }


TINY = Shape("tiny", 384, 4, 51_865)
BASE = Shape("base", 512, 6, 51_865)
LARGE_V3 = Shape("large-v3", 1280, 32, 51_866, mels=128)
SHAPES = {shape.name: shape for shape in (TINY, BASE, LARGE_V3)}


def make_inputs(folder: Path, shape: Shape, experts: int) -> list[Path]:
    """Return the folders of a base and its experts, made where they are not there yet."""
    folders = [folder / shape.name / name for name in ("base", *(f"e{k}" for k in range(experts)))]
    base: dict[str, torch.Tensor] | None = None
    for number, target in enumerate(folders):
        if (target / WEIGHTS).is_file():
            continue
        if base is None:
            base = _base(shape)
        tensors = base if number == 0 else _expert(base, number)
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(shape.config))
        save_file(tensors, target / f"{WEIGHTS}.partial", metadata={"format": "pt"})
        (target / f"{WEIGHTS}.partial").rename(target / WEIGHTS)
    return folders


def _base(shape: Shape) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = expected_shapes(shape.config)
    return {name: 0.05 * torch.randn(size, generator=generator) for name, size in shapes.items()}


def _expert(base: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + _task_vector(name, tensor, generator) for name, tensor in base.items()}


def _task_vector(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    size = _SIZE * float(tensor.std())
    if name == "model.encoder.embed_positions.weight":
        return torch.zeros_like(tensor)  # fixed sinusoids in Whisper
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim != 2:
        return size * noise
    rows, columns = tensor.shape
    left = torch.randn(rows, _RANK, generator=generator)
    right = torch.randn(_RANK, columns, generator=generator) / torch.arange(1, _RANK + 1)[:, None]
    return size * (left @ right / _RANK**0.5 + _NOISE * noise)
