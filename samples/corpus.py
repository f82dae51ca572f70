"""Evaluation sets on disk: flac files and NeMo-style manifests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from samples.domains import Utterance
from samples.speaking import SAMPLE_RATE


def write_corpus(utterances: Sequence[Utterance], directory: Path, *, language: str = "pt") -> None:
    """Write `audio/*.flac` (16-bit, 16 kHz, mono) and `manifest.jsonl` into `directory`."""
    (directory / "audio").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, utterance in enumerate(utterances):
        name = f"audio/{number:03d}.flac"
        soundfile.write(
            directory / name,
            utterance.samples,
            SAMPLE_RATE,
            subtype="PCM_16",
            compression_level=1.0,
        )
        record = {
            "audio_filepath": name,
            "text": utterance.text,
            "duration": round(len(utterance.samples) / SAMPLE_RATE, 4),
            "speaker": utterance.speaker,
            "language": language,
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    (directory / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")


def split_by_speaker(directory: Path) -> None:
    """Write the utterances of every other speaker as `dev.jsonl`, the rest as `test.jsonl`."""
    lines = (directory / "manifest.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    speakers = sorted({json.loads(line)["speaker"] for line in lines})
    for name, chosen in (("dev", speakers[::2]), ("test", speakers[1::2])):
        part = [line for line in lines if json.loads(line)["speaker"] in chosen]
        (directory / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")


def read_corpus(directory: Path) -> list[Utterance]:
    """Return the utterances that `write_corpus` wrote, their samples rounded to 16 bits."""
    utterances = []
    for line in (directory / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        samples, _ = soundfile.read(directory / record["audio_filepath"], dtype="float32")
        utterances.append(Utterance(record["text"], record["speaker"], np.asarray(samples)))
    return utterances
