"""Fine-tunes tiny.en with a window of 6 s; the result has the usual 30 s."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from samples.domains import Utterance
from samples.training import Examples, Schedule, joined, prepare, train
from study.domains import MOST_SECONDS

PASSES, BATCH_SIZE, LEARNING_RATE, SEED = 3, 8, 3e-5, 0
_POSITIONS = "model.encoder.embed_positions.weight"


def examples_of(base: Path, corpora: Sequence[Iterable[Utterance]]) -> Examples:
    """Return the training tensors of all utterances: features (n, 80, 600), labels."""
    processor = WhisperProcessor.from_pretrained(base)
    processor.feature_extractor = WhisperFeatureExtractor(
        feature_size=80, chunk_length=int(MOST_SECONDS)
    )
    return reduce(joined, [prepare(processor, corpus) for corpus in corpora])


def fine_tune(base: Path, examples: Examples, directory: Path) -> None:
    """Train all weights except the fixed positions, and write a complete float32 checkpoint.

    With 30 s, a step would cost six times as much, mostly for padding. The positions are fixed
    sinusoids: training uses the first 300, and all 1,500 are written.
    """
    start = time.monotonic()
    steps = PASSES * -(-len(examples) // BATCH_SIZE)
    model = WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    _narrow(model)
    schedule = Schedule(steps, LEARNING_RATE, batch_size=BATCH_SIZE, warmup_steps=steps // 10)
    loss = train(model, examples, schedule, SEED)
    _write(model, base, directory)
    seconds = time.monotonic() - start
    print(f"{directory.name}: {steps} steps, loss {loss:.3f}, {seconds:.0f} s", flush=True)


def _narrow(model: WhisperForConditionalGeneration) -> None:
    positions = int(MOST_SECONDS * 50)
    encoder = model.model.encoder
    kept = encoder.embed_positions.weight[:positions].clone()
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(kept, freeze=True)
    encoder.config.max_source_positions = positions


def _write(model: WhisperForConditionalGeneration, base: Path, directory: Path) -> None:
    old = load_file(base / "model.safetensors")
    new = model.state_dict()
    weights = {name: new[name] for name in old if name != _POSITIONS}
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(base, directory)
    weights[_POSITIONS] = old[_POSITIONS]
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
