"""Fine-tunes Whisper in windows as long as the speech; the result has the usual 30 s."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from samples.domains import Utterance
from samples.speaking import SAMPLE_RATE
from samples.training import IGNORED, Batch, Schedule, train

BATCH_SIZE, SEED = 8, 0
# A window ends in silence, as it does in 30 s.
_TAIL_FRAMES = 50
_POSITIONS = "model.encoder.embed_positions.weight"


@dataclass(frozen=True)
class Example:
    """The features (80, 3000) of 30 s, how many of their frames are needed, and the labels."""

    features: torch.Tensor
    frames: int
    labels: torch.Tensor


def examples_of(base: Path, utterances: Iterable[Utterance], language: str | None) -> list[Example]:
    """Return the training tensors; `language` None is for English-only models.

    The text starts with a space, as in OpenAI's training, so that each word is one token.
    """
    processor = WhisperProcessor.from_pretrained(base)
    if language:
        processor.tokenizer.set_prefix_tokens(language, "transcribe", predict_timestamps=False)
    examples = []
    for utterance in utterances:
        mel = processor.feature_extractor(
            utterance.samples, sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )
        frames = -(-100 * len(utterance.samples) // SAMPLE_RATE) + _TAIL_FRAMES
        # The model puts the first token, <|startoftranscript|>, before the labels itself.
        labels = torch.tensor(processor.tokenizer(" " + utterance.text).input_ids[1:])
        examples.append(Example(mel.input_features[0], min(frames, 3000), labels))
    return examples


def fine_tune(
    base: Path,
    examples: Sequence[Example],
    directory: Path,
    steps: int,
    learning_rate: float,
    lora_rank: int | None = None,
) -> None:
    """Train all weights except the fixed positions, and write a complete float32 checkpoint.

    With a rank, train a LoRA of all linear layers instead, and write PEFT's folder.
    """
    start = time.monotonic()
    model = WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    schedule = Schedule(steps, learning_rate, warmup_steps=steps // 10)
    if lora_rank is None:
        loss = train(model, _batches(model, examples), schedule)
        _write(model, base, directory)
    else:
        settings = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear")
        adapted = get_peft_model(model, settings)  # changes the model in place
        loss = train(model, _batches(model, examples), schedule)
        adapted.save_pretrained(directory)
    seconds = time.monotonic() - start
    print(f"{directory.name}: {steps} steps, loss {loss:.3f}, {seconds:.0f} s", flush=True)


def _batches(
    model: WhisperForConditionalGeneration, examples: Sequence[Example]
) -> Iterator[Batch]:
    """Yield batches of utterances of similar length, for which the model's window is narrowed.

    With 30 s, a step would cost several times as much, mostly for padding.
    """
    rng = random.Random(SEED)
    positions = model.model.encoder.embed_positions.weight.clone()
    while True:
        by_length = sorted(examples, key=lambda example: example.frames * rng.uniform(0.8, 1.25))
        batches = [by_length[at : at + BATCH_SIZE] for at in range(0, len(examples), BATCH_SIZE)]
        rng.shuffle(batches)
        for batch in batches:
            frames = max(example.frames for example in batch)
            frames += frames % 2
            _narrow(model, positions[: frames // 2])
            features = torch.stack([example.features[:, :frames] for example in batch])
            labels = [example.labels for example in batch]
            yield features, pad_sequence(labels, batch_first=True, padding_value=IGNORED)


def _narrow(model: WhisperForConditionalGeneration, positions: torch.Tensor) -> None:
    """Give the encoder the first of its positions, which are fixed sinusoids."""
    encoder = model.model.encoder
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(positions, freeze=True)
    encoder.config.max_source_positions = len(positions)


def _write(model: WhisperForConditionalGeneration, base: Path, directory: Path) -> None:
    old = load_file(base / "model.safetensors")
    new = model.state_dict()
    weights = {name: new[name].contiguous() for name in old if name != _POSITIONS}
    weights[_POSITIONS] = old[_POSITIONS]
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(base, directory)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
