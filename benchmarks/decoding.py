"""The own Whisper decoder against transformers' `generate`: ratios of time, equal transcripts.

Both get the same samples, sorted by length in the same batches, and pay for features, encoder,
search and text; runs alternate. Run: `python -m benchmarks.decoding --model FOLDER --speech
MANIFEST`. Without them it takes the sample checkpoint and speech of this repository.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from app.contract.evaluation import DecodingOptions
from app.sources.architectures.architecture import SAMPLE_RATE
from app.sources.manifests import audio_source, read_manifest
from worker.evaluation.audio import find_segment, read_segment
from worker.evaluation.decoder import Samples
from worker.evaluation.whisper.checkpoint import OWN_BACKEND
from worker.evaluation.whisper.decoding import SpeechDecoder

_SAMPLES = Path(__file__).parents[1] / "samples"
MIXES = ("short", "long", "mixed")


@dataclass(frozen=True)
class Run:
    """One engine over one mix: what it heard, and the seconds by the clock and of processors."""

    texts: list[str]
    seconds: float
    cpu_seconds: float


def read_speech(manifest_path: Path) -> list[Samples]:
    """Return a manifest's utterances, the shortest first."""
    manifest = read_manifest(manifest_path, label=manifest_path.name)
    speech = [
        read_segment(find_segment(audio_source(manifest, utterance)))
        for utterance in manifest.utterances
    ]
    return sorted(speech, key=len)


def choose(speech: Sequence[Samples], mix: str, count: int) -> list[Samples]:
    """Return so many of the shortest, of the longest, or of all lengths, the longest first."""
    if mix == "short":
        chosen = list(speech[:count])
    elif mix == "long":
        chosen = list(speech[-count:])
    else:
        chosen = [speech[index * len(speech) // count] for index in range(count)]
    return chosen[::-1]


def decode(decoder: SpeechDecoder, speech: Sequence[Samples], batch: int) -> Run:
    """Return the texts and times of one pass in batches."""
    wall, cpu = time.perf_counter(), time.process_time()
    texts = []
    for start in range(0, len(speech), batch):
        texts += decoder.decode(speech[start : start + batch])
    return Run(texts, time.perf_counter() - wall, time.process_time() - cpu)


def rows(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the table's rows."""
    speech = read_speech(arguments.speech)
    for beams in arguments.beams:
        options = DecodingOptions(num_beams=beams)
        own, theirs = (SpeechDecoder(arguments.model, "cpu", "float32", options) for _ in range(2))
        if own.backend != OWN_BACKEND:
            raise SystemExit(f"{arguments.model} is decoded by transformers: nothing to compare")
        theirs.transcriber = None
        for mix in arguments.mixes:
            chosen = choose(speech, mix, arguments.utterances)
            for decoder in (own, theirs):
                decoder.decode(chosen[-1:])
            pairs = [
                (decode(own, chosen, arguments.batch), decode(theirs, chosen, arguments.batch))
                for _ in range(arguments.repeats)
            ]
            yield _row(beams, mix, chosen, pairs)


def _row(beams: int, mix: str, chosen: list[Samples], pairs: list[tuple[Run, Run]]) -> str:
    ratios = [theirs.seconds / own.seconds for own, theirs in pairs]
    cpu = median(theirs.cpu_seconds / own.cpu_seconds for own, theirs in pairs)
    own, theirs = pairs[0]
    equal = sum(a == b for a, b in zip(own.texts, theirs.texts, strict=True))
    cells = (
        "greedy" if beams == 1 else f"beam {beams}",
        mix,
        f"{len(chosen[-1]) / SAMPLE_RATE:.1f}-{len(chosen[0]) / SAMPLE_RATE:.1f} s",
        f"{median(run.seconds for run, _ in pairs):.2f}",
        f"{median(run.seconds for _, run in pairs):.2f}",
        f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        f"{cpu:.2f}",
        f"{equal} of {len(chosen)}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=_SAMPLES / "checkpoints/base")
    parser.add_argument("--speech", type=Path, default=_SAMPLES / "speech/clean/manifest.jsonl")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=MIXES)
    parser.add_argument("--utterances", type=int, default=16, help="of each mix")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| search | mix | lengths | own (s) | generate (s) | ratio (range) | ratio CPU | equal |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for row in rows(arguments):
        print(row, flush=True)


if __name__ == "__main__":
    main()
