"""What the preparation writes: recipes that the service accepts, and splits that are disjoint."""

from __future__ import annotations

import argparse
import gzip
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from app.contract.spaces import check_study
from app.contract.studies import parse_study
from study import domains
from study.prepare import COUNTS, prepare_base, prepare_tiny
from study.recipes import CANDIDATES, FULL, lora
from study.recorded import EXPERTS, SETS, RecordedSet

REST = 30
SPEAKERS = 10
with io.BytesIO() as wav:
    soundfile.write(wav, np.zeros(80), 8000, format="WAV")
    SILENCE = wav.getvalue()


def say(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(SILENCE)


def texts_of(one: RecordedSet) -> list[str]:
    """Return texts for all splits, with one that is said twice, and one that every set has."""
    texts = [f"This is sentence {n} of {one.name}." for n in range(one.dev + one.test + REST)]
    return [*texts, f"THIS is sentence 0 of {one.name}!", "A text in EVERY set."]


def write_folder(speech: Path, one: RecordedSet) -> None:
    lines = []
    for number, text in enumerate(texts_of(one)):
        audio = f"audio/{number}.wav"
        say(speech / one.folder / audio)
        line = {"audio_filepath": audio, "text": text, "lang": one.language, "duration": 0.01}
        if one.name == "non_native":
            line["speaker"] = f"speaker {number % SPEAKERS}"
        lines.append(json.dumps(line))
    long = {**json.loads(lines[0]), "text": "This takes too long.", "duration": 21.0}
    manifest = speech / one.folder / "manifest.jsonl"
    manifest.write_text("\n".join([*lines, json.dumps(long)]))


def write_prompts(packages: Path, one: RecordedSet) -> None:
    share = packages / "usr" / "share"
    lines = ["; a comment: of more than four words", "beep: [a tone of one second]"]
    for number, text in enumerate(texts_of(one)):
        say(share / "asterisk" / "sounds" / one.voice / "some" / f"{number}.wav")
        lines.append(f"some/{number}: {text}")
    name = f"core-sounds-{one.language}"
    listed = share / "doc" / f"asterisk-{name}" / f"{name}.txt.gz"
    listed.parent.mkdir(parents=True)
    listed.write_bytes(gzip.compress("\n".join(lines).encode()))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of recorded speech, prepared with trained models in place."""
    root = tmp_path_factory.mktemp("study")
    for one in SETS:
        if one.voice:
            write_prompts(root / "packages", one)
        else:
            write_folder(root / "speech", one)
    for name in (*EXPERTS, *map(lora, EXPERTS), FULL):
        (root / "study" / name).mkdir(parents=True)
    (root / "model").mkdir()
    prepare_base(
        argparse.Namespace(
            folder=root / "study",
            model=root / "model",
            speech=root / "speech",
            packages=root / "packages",
        )
    )
    return root / "study"


def manifests(folder: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the lines of the manifests by set and split."""
    return {
        (file.stem, file.parent.name): [
            json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()
        ]
        for file in (folder / "speech").glob("*/*.jsonl")
    }


def uris(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(uris(one) for one in value.values()))
    if isinstance(value, list):
        return set().union(*(uris(one) for one in value))
    return {value} if isinstance(value, str) and value.startswith("file://") else set()


def test_no_recording_and_no_text_is_in_two_splits_or_sets(prepared: Path) -> None:
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for place, lines in manifests(prepared).items():
        for line in lines:
            places[line["audio_filepath"]].add(place)
            places[line["text"].lower().strip(".!")].add(place)
    assert all(len(found) == 1 for found in places.values())
    assert "this takes too long" not in places


def test_no_speaker_of_a_set_with_several_is_in_two_splits(prepared: Path) -> None:
    found = manifests(prepared)
    speakers = [
        {line["speaker"] for line in found["non_native", split]}
        for split in ("train", "dev", "test")
    ]
    assert sum(map(len, speakers)) == len(set().union(*speakers)) == SPEAKERS


def test_upper_case_becomes_sentence_case_only_where_a_set_is_printed_so(prepared: Path) -> None:
    texts = [line["text"] for lines in manifests(prepared).values() for line in lines]
    assert "A text in EVERY set." in texts
    non_native = [line["text"] for line in manifests(prepared)["non_native", "test"]]
    assert all(text == text.capitalize() for text in non_native)


@pytest.mark.parametrize("name", ["recipe", "recipe-retention", "recipe-data", "recipe-lora"])
def test_the_service_accepts_the_recipe_and_all_it_names_exists(prepared: Path, name: str) -> None:
    recipe = json.loads((prepared / f"{name}.json").read_text("ascii"))
    study = check_study(parse_study(recipe))
    assert len(study.limits) == (2 if name == "recipe-retention" else 0)
    assert {one.name for one in study.request.references} == {FULL}
    named = uris(recipe)
    assert all(Path(uri.removeprefix("file://")).exists() for uri in named)
    measured = uris({**recipe, "calibration": None})
    assert not any("/train/" in uri for uri in measured)


def test_the_synthetic_recipe_names_what_its_preparation_makes(tmp_path: Path) -> None:
    for split in COUNTS:
        for domain in (*domains.IN_DOMAIN, *domains.OUT_OF_DOMAIN):
            if domain in domains.IN_DOMAIN or split == "test":
                target = tmp_path / "speech" / split / domain.name
                target.mkdir(parents=True)
                (target / "manifest.jsonl").touch()
    for name in ("base", FULL, *(domain.name for domain in domains.IN_DOMAIN)):
        (tmp_path / name).mkdir()
    prepare_tiny(argparse.Namespace(folder=tmp_path))
    recipe = json.loads((tmp_path / "recipe.json").read_text("ascii"))
    assert check_study(parse_study(recipe)).trials == 60
    assert all(Path(uri.removeprefix("file://")).exists() for uri in uris(recipe))


def test_the_twelve_methods_are_tried_each_once() -> None:
    assert len({candidate["method"] for candidate in CANDIDATES}) == len(CANDIDATES) == 12
