"""Whisper-shaped checkpoints to merge: a base and experts, seeded, low rank plus noise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.sources.architectures.whisper.shapes import expected_shapes

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
SAMPLES = Path(__file__).parents[1] / "samples" / "checkpoints"
_SAMPLES = ("base", "telephone", "parliament", "fast")
# The task vectors: of rank 8 with a falling spectrum, about 2 % of the base, plus noise.
_RANK, _SIZE, _NOISE = 8, 0.02, 0.1


@dataclass(frozen=True)
class Shape:
    """One of Whisper's sizes, or a part of one."""

    name: str
    d_model: int
    layers: int
    vocabulary: int
    mels: int = 80
    dtype: str = "float32"

    @property
    def config(self) -> dict[str, object]:
        """The config.json of this size, with the tokens of the sample checkpoints."""
        heads = self.d_model // 64
        return {
            **json.loads((SAMPLES / "base" / "config.json").read_text()),
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
            "dtype": self.dtype,
            "torch_dtype": self.dtype,
        }


_SHAPES = (
    Shape("tiny", 384, 4, 51_865),
    Shape("base", 512, 6, 51_865),
    # Large-v3's matrices, one layer of the encoder and one of the decoder, and few tokens.
    Shape("layer", 1280, 1, 512, mels=128, dtype="float16"),
    Shape("large-v3", 1280, 32, 51_866, mels=128, dtype="float16"),
)
SHAPES = {shape.name: shape for shape in _SHAPES}


def make_inputs(folder: Path, shape: Shape, experts: int) -> list[Path]:
    """Return the folders of a base and its experts, made where they are not there yet."""
    names = ["base", *(f"e{k}" for k in range(experts))]
    folders = [folder / f"{shape.name}-{shape.dtype}" / name for name in names]
    if not all((each / WEIGHTS).is_file() for each in folders):
        # In a process of its own, so that torch takes no memory of the one that measures.
        command = [sys.executable, "-m", "benchmarks.inputs", shape.name, *map(str, folders)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    return folders


def copy_samples(folder: Path, count: int) -> list[Path]:
    """Return the folders of copies of the first sample checkpoints, the base before the experts."""
    folders = [folder / "samples" / name for name in _SAMPLES[:count]]
    for each in folders:
        shutil.copytree(SAMPLES / each.name, each, dirs_exist_ok=True)
    return folders


def forget_digests(folders: Sequence[Path]) -> None:
    """Touch every file of the folders, so that a merge hashes it again."""
    for folder in folders:
        for path in folder.iterdir():
            os.utime(path)


def make_checkpoints(shape: Shape, folders: Sequence[Path]) -> None:
    """Make a base and its experts in the folders that have no weights yet."""
    from safetensors.torch import save_file

    base = _base(shape)
    for number, target in enumerate(folders):
        if (target / WEIGHTS).is_file():
            continue
        tensors = base if number == 0 else _expert(base, number)
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(shape.config))
        shutil.copy(SAMPLES / "base" / "tokenizer.json", target)
        shutil.copy(SAMPLES / "base" / "tokenizer_config.json", target)
        features = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": shape.mels}
        (target / "preprocessor_config.json").write_text(json.dumps(features))
        save_file(tensors, target / f"{WEIGHTS}.partial", metadata={"format": "pt"})
        (target / f"{WEIGHTS}.partial").rename(target / WEIGHTS)


def _base(shape: Shape) -> dict[str, torch.Tensor]:
    import torch

    generator, dtype = torch.Generator().manual_seed(0), getattr(torch, shape.dtype)
    return {
        name: (0.05 * torch.randn(size, generator=generator)).to(dtype)
        for name, size in expected_shapes(shape.config).items()
    }


def _expert(base: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor.float() + _task_vector(name, tensor.float(), generator)).to(tensor.dtype)
        for name, tensor in base.items()
    }


def _task_vector(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    import torch

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


if __name__ == "__main__":
    make_checkpoints(SHAPES[sys.argv[1]], [Path(argument) for argument in sys.argv[2:]])
