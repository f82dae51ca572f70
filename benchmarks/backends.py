"""The backends of an evaluation side by side: equal hypotheses, error rates, ratios of time.

All decode the same samples in the same batches, with one thread, features included; conversion and
loading are not counted. Backends take turns batch by batch. Run:
`python -m benchmarks.backends CHECKPOINT MANIFEST`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch

from app.contract.evaluation import DecodingOptions, UtteranceResult
from app.contract.formats import Backend, Format
from app.reports.normalizers import find_normalizer
from app.reports.scoring import score, total
from app.sources.manifests import audio_source, read_manifest
from worker.evaluation.audio import find_segment, read_segment
from worker.evaluation.decoder import Decoder, Samples
from worker.evaluation.families import load

BACKENDS: tuple[Backend, ...] = ("default", *get_args(Format))


@dataclass
class Run:
    """What one backend has decoded, and the seconds that it took."""

    decoder: Decoder
    texts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def decode(self, batch: Sequence[Samples], language: str | None) -> None:
        began, began_cpu = time.perf_counter(), time.process_time()
        sounds = [self.decoder.sound(samples) for samples in batch]
        self.texts += [found.text for found in self.decoder.transcribe(sounds, language)]
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - began_cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--language")
    parser.add_argument("--normalizer", default="basic")
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--utterances", type=int, help="The first so many.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    manifest = read_manifest(given.manifest, label=given.manifest.name)
    chosen = manifest.utterances[: given.utterances]
    speech = [read_segment(find_segment(audio_source(manifest, one))) for one in chosen]
    runs = {}
    for backend in BACKENDS:
        how = DecodingOptions(num_beams=given.num_beams, task="transcribe", backend=backend)
        runs[backend] = Run(load(given.checkpoint, "cpu", "float32", how))
    for start in range(0, len(speech), given.batch_size):
        for run in runs.values():
            run.decode(speech[start : start + given.batch_size], given.language)
    normalizer = find_normalizer(given.normalizer, given.language)
    print("| backend | own / backend | the same, CPU time | equal hypotheses | WER |")
    print("| --- | --- | --- | --- | --- |")
    own = runs["default"]
    for backend, run in runs.items():
        equal = sum(map(str.__eq__, run.texts, own.texts))
        results = [
            UtteranceResult(
                index=one.index, audio=one.audio, reference=one.reference, hypothesis=text,
                audio_seconds=1.0, decode_seconds=1.0,
            )
            for one, text in zip(chosen, run.texts, strict=True)
        ]  # fmt: skip
        rate = total(scored.words for scored in score(results, normalizer)).rate or 0.0
        print(
            f"| `{backend}` | {own.seconds / run.seconds:.2f} "
            f"| {own.cpu_seconds / run.cpu_seconds:.2f} "
            f"| {equal} of {len(speech)} | {100 * rate:.2f} % |"
        )


if __name__ == "__main__":
    main()
