"""Trains a checkpoint on spoken digits: computes features once, then AdamW and cosine schedule."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from samples.domains import Utterance
from samples.speaking import SAMPLE_RATE
from samples.tiny_whisper import SPECIAL_TOKENS

IGNORED = -100
Batch = tuple[torch.Tensor, torch.Tensor]
"""Features and labels of some examples."""


@dataclass(frozen=True)
class Schedule:
    """The length and the learning rates of a training."""

    steps: int
    learning_rate: float
    warmup_steps: int = 50
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Examples:
    """Mel features (n, 40, 200) float32 and labels (n, tokens) int64, padded with -100."""

    features: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


def joined(first: Examples, second: Examples) -> Examples:
    """Return the examples of both, with labels padded to the same width."""
    rows = [*first.labels, *second.labels]
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    return Examples(torch.cat([first.features, second.features]), labels)


def label_ids(processor: WhisperProcessor, text: str) -> list[int]:
    """Return the decoder's targets after its start token, including the end token.

    The text starts with a space, as in OpenAI's training, so that each word is one token.
    """
    end, *_, no_timestamps = processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    words = processor.tokenizer(" " + text, add_special_tokens=False).input_ids
    return [no_timestamps, *words, end]


def prepare(processor: WhisperProcessor, utterances: Iterable[Utterance]) -> Examples:
    """Return the training tensors of the utterances."""
    features, labels = [], []
    for utterance in utterances:
        mel = processor.feature_extractor(
            utterance.samples, sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )
        features.append(mel.input_features[0])
        labels.append(torch.tensor(label_ids(processor, utterance.text)))
    padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    return Examples(torch.stack(features), padded)


def shuffled(examples: Examples, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield batches without end, in a new order for every pass."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(examples), generator=generator)
        for rows in torch.split(order, batch_size):
            yield examples.features[rows], examples.labels[rows]


def train(
    model: WhisperForConditionalGeneration, batches: Iterator[Batch], schedule: Schedule
) -> float:
    """Train `model` in place and return the mean loss of the last fifty steps."""
    # Whisper's encoder positions are fixed sinusoids.
    model.model.encoder.embed_positions.requires_grad_(False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        schedule.learning_rate,
        total_steps=schedule.steps,
        pct_start=min(0.5, schedule.warmup_steps / schedule.steps),
        cycle_momentum=False,
    )
    losses: list[float] = []
    model.train()
    for features, labels in itertools.islice(batches, schedule.steps):
        output = model(input_features=features, labels=labels)
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(output.loss.item())
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])
