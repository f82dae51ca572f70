"""`python -m samples.make_samples`: makes samples/speech and samples/checkpoints."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch
from transformers import WhisperForConditionalGeneration

from samples.corpus import split_by_speaker, write_corpus
from samples.domains import (
    ALL_DOMAINS,
    CLEAN,
    EXPERT_DOMAINS,
    evaluation_utterances,
    training_utterances,
)
from samples.speaking import require_espeak
from samples.tiny_whisper import build_model, build_processor, save_checkpoint
from samples.training import Schedule, joined, prepare, shuffled, train

HERE = Path(__file__).parent
EVALUATION_UTTERANCES = 48
BASE_UTTERANCES, EXPERT_UTTERANCES = 6000, 1200
BASE_SCHEDULE = Schedule(steps=2600, learning_rate=3e-3)
# Small steps, half of them on clean speech: experts far from the base cannot be merged.
EXPERT_SCHEDULE = Schedule(steps=300, learning_rate=3e-4, warmup_steps=20)
BATCH_SIZE, SEED = 16, 0


def make_speech(directory: Path) -> None:
    """Write every domain's evaluation set."""
    for domain in ALL_DOMAINS:
        target = directory / domain.name
        shutil.rmtree(target, ignore_errors=True)
        write_corpus(list(evaluation_utterances(domain, EVALUATION_UTTERANCES)), target)
        split_by_speaker(target)


def make_base(directory: Path) -> None:
    """Train the base on clean speech of many voices, and save it."""
    processor = build_processor()
    base = build_model(processor, SEED)
    examples = prepare(processor, training_utterances(CLEAN, BASE_UTTERANCES))
    report("base", train(base, shuffled(examples, BATCH_SIZE, SEED), BASE_SCHEDULE))
    save_checkpoint(base, processor, directory / "base")


def make_experts(directory: Path) -> None:
    """Train the encoder of one expert per domain, from the base on disk, and save them."""
    processor = build_processor()
    rehearsed = prepare(processor, training_utterances(CLEAN, EXPERT_UTTERANCES))
    for domain in EXPERT_DOMAINS:
        expert = WhisperForConditionalGeneration.from_pretrained(
            directory / "base", dtype=torch.float32
        )
        # The domains differ in sound, not in words. With changes in so small a decoder,
        # boosted_tsv_m, which raises weak directions, would loop.
        expert.model.decoder.requires_grad_(False)
        new = prepare(processor, training_utterances(domain, EXPERT_UTTERANCES))
        batches = shuffled(joined(new, rehearsed), BATCH_SIZE, SEED)
        report(domain.name, train(expert, batches, EXPERT_SCHEDULE))
        save_checkpoint(expert, processor, directory / domain.name)


def report(name: str, loss: float) -> None:
    """Print a checkpoint's name and its final training loss."""
    print(f"trained {name}: loss {loss:.4f}", flush=True)


PARTS = {"speech": make_speech, "base": make_base, "experts": make_experts}


def main() -> None:
    """Make the given parts (default: all) on one thread, and print how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=HERE, help="default: this folder")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    print(require_espeak())
    for part in arguments.parts or PARTS:
        start = time.monotonic()
        PARTS[part](arguments.output / ("speech" if part == "speech" else "checkpoints"))
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
