"""The evaluation sets: audio as the manifest says, and nothing in them was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import soundfile

from samples.corpus import read_corpus, write_corpus
from samples.digits import WORDS, is_held_out
from samples.domains import EVALUATION_VARIANTS, TRAINING_VARIANTS, Utterance

Manifest = list[dict[str, Any]]


def test_every_utterance_has_audio_of_the_stated_duration(
    domain_folder: Path, manifest: Manifest
) -> None:
    for record in manifest:
        info = soundfile.info(domain_folder / record["audio_filepath"])
        assert (info.samplerate, info.channels, info.format) == (16_000, 1, "FLAC")
        assert abs(info.duration - record["duration"]) < 1e-3
        assert 0.3 < info.duration <= 2.0


def test_no_audio_file_lacks_a_manifest_line(domain_folder: Path, manifest: Manifest) -> None:
    files = {f"audio/{file.name}" for file in (domain_folder / "audio").iterdir()}
    assert files == {record["audio_filepath"] for record in manifest}


def test_texts_are_held_out_distinct_digit_strings(manifest: Manifest) -> None:
    texts = [record["text"] for record in manifest]
    assert len(set(texts)) == len(texts) >= 40
    assert all(is_held_out(text) for text in texts)
    assert {word for text in texts for word in text.split()} == set(WORDS)


def test_speakers_are_held_out(manifest: Manifest) -> None:
    speakers = {record["speaker"] for record in manifest}
    assert speakers == {f"pt+{variant}" for variant in EVALUATION_VARIANTS}
    assert not set(EVALUATION_VARIANTS) & set(TRAINING_VARIANTS)


def test_every_language_is_portuguese(manifest: Manifest) -> None:
    assert {record["language"] for record in manifest} == {"pt"}


def test_a_corpus_written_and_read_keeps_its_utterances(
    domain_folder: Path, tmp_path: Path
) -> None:
    first: Utterance = read_corpus(domain_folder)[0]
    write_corpus([first], tmp_path)
    again = read_corpus(tmp_path)[0]
    assert (again.text, again.speaker) == (first.text, first.speaker)
    assert (again.samples == first.samples).all()
