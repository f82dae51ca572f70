"""`python -m samples.measure_samples [more checkpoint folders]`: prints the README's table."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from samples.corpus import read_corpus
from samples.domains import ALL_DOMAINS, EXPERT_DOMAINS, Utterance
from samples.make_samples import HERE
from samples.measuring import word_error_rate

Corpora = dict[str, list[Utterance]]
State = dict[str, torch.Tensor]
COEFFICIENTS = (0.3, 0.4, 0.5)


def print_row(name: str, rates: dict[str, float]) -> None:
    """Print a checkpoint's rates in percent, and their mean over the experts' domains."""
    inside = [rates[domain.name] for domain in EXPERT_DOMAINS]
    cells = [f"{100 * rate:.1f}" for rate in rates.values()]
    cells.append(f"{100 * sum(inside) / len(inside):.1f}")
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def merged(base: State, experts: list[State], coefficient: float) -> State:
    """Return base + coefficient · sum of the task vectors (1/N gives the experts' mean)."""
    return {
        name: weight
        + coefficient * torch.stack([expert[name] - weight for expert in experts]).sum(0)
        for name, weight in base.items()
    }


def measure(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, corpora: Corpora
) -> dict[str, float]:
    """Return the word error rate, a fraction, of every evaluation set."""
    return {name: word_error_rate(model, processor, corpus) for name, corpus in corpora.items()}


def main() -> None:
    """Measure the base, the experts, simple merges of them, and the given folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    more = parser.parse_args().folders
    torch.set_num_threads(1)
    checkpoints = HERE / "checkpoints"
    processor = WhisperProcessor.from_pretrained(checkpoints / "base")
    corpora = {domain.name: read_corpus(HERE / "speech" / domain.name) for domain in ALL_DOMAINS}
    names = ["base", *(domain.name for domain in EXPERT_DOMAINS)]
    print("| checkpoint | " + " | ".join(corpora) + " | in-domain mean |")
    print("| --- |" + " ---: |" * (len(corpora) + 1))
    for folder in [*(checkpoints / name for name in names), *more]:
        model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        print_row(folder.name, measure(model.eval(), processor, corpora))
    states = [load_file(checkpoints / name / "model.safetensors") for name in names]
    for coefficient in (1 / len(EXPERT_DOMAINS), *COEFFICIENTS):
        model.load_state_dict(merged(states[0], states[1:], coefficient), strict=False)
        model.tie_weights()
        label = f"base + {coefficient:.2f} x the sum of the task vectors"
        print_row(label, measure(model, processor, corpora))


if __name__ == "__main__":
    main()
