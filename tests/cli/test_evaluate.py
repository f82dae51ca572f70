"""`afluente evaluate` ends well only if everything was decoded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cli import main

SAMPLES = Path(__file__).parents[2] / "samples"
CHECKPOINT = SAMPLES / "checkpoints/telephone"


def evaluate(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, manifest: Path, *options: str
) -> int:
    words = ["afluente", "evaluate", str(checkpoint), "-m", str(manifest), "--num-beams", "1"]
    monkeypatch.setattr("sys.argv", [*words, *options])
    try:
        main.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    speech = SAMPLES / "speech/telephone"
    first = json.loads((speech / "manifest.jsonl").read_text().splitlines()[0])
    first["audio_filepath"] = str(speech / first["audio_filepath"])
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(first) + "\n")
    return path


def test_it_ends_well_where_everything_was_decoded(monkeypatch, capsys, manifest: Path) -> None:
    assert evaluate(monkeypatch, CHECKPOINT, manifest) == 0
    assert "set" in capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_it_ends_with_1_where_something_was_skipped_and_still_shows_the_rest(
    monkeypatch, capsys, manifest: Path, options: tuple[str, ...]
) -> None:
    gone = {"audio_filepath": "gone.wav", "text": "um"}
    manifest.write_text(manifest.read_text() + json.dumps(gone) + "\n")
    assert evaluate(monkeypatch, CHECKPOINT, manifest, *options) == 1
    told = capsys.readouterr()
    assert "set" in told.out
    assert "1 utterances could not be decoded, the first of them set: gone.wav" in told.err


@pytest.mark.parametrize("kept", [(), ("vocab.json",), ("tokenizer_config.json",)])
def test_no_tokenizer_is_ever_made_up(
    monkeypatch, capsys, manifest: Path, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    bare = tmp_path / "checkpoint-1000"
    files = ("config.json", "generation_config.json", "preprocessor_config.json", *kept)
    bare.mkdir()
    for name in (*files, "model.safetensors"):
        shutil.copy(CHECKPOINT / name, bare)
    assert evaluate(monkeypatch, bare, manifest) == 1
    assert "checkpoint-1000 has no tokenizer" in capsys.readouterr().err
