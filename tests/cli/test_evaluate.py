"""`afluente evaluate` exits with status 0 only if everything was decoded."""

from __future__ import annotations

import json
import os
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
    monkeypatch.setenv("AFLUENTE_DATA_DIR", str(manifest.parent / "data"))
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


def test_the_status_is_0_if_everything_was_decoded(monkeypatch, capsys, manifest: Path) -> None:
    assert evaluate(monkeypatch, CHECKPOINT, manifest) == 0
    assert "set" in capsys.readouterr().out


def test_options_take_precedence_over_a_preset(monkeypatch, capsys, manifest: Path) -> None:
    options = ("--preset", "open_asr", "--num-beams", "2", "--language", "pt", "--voice-activity")
    assert evaluate(monkeypatch, CHECKPOINT, manifest, *options, "--json") == 0
    [found] = json.loads(capsys.readouterr().out)["datasets"]
    assert found["normalizer"]["name"] == "open_asr"
    assert (found["decoding"]["num_beams"], found["language"]) == (2, "pt")
    # The utterance fits the window.
    assert found["decoding"]["voice_activity"] is None


def test_paths_may_contain_dots_and_url_characters(monkeypatch, capsys, manifest: Path) -> None:
    here = manifest.parent / "runs?a#b%41"
    here.mkdir()
    shutil.copytree(CHECKPOINT, manifest.parent / "a model#1")
    monkeypatch.chdir(here)
    assert evaluate(monkeypatch, Path("../a model#1"), Path("..") / manifest.name) == 0
    assert "a model#1" in capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_status_is_1_if_utterances_were_skipped(
    monkeypatch, capsys, manifest: Path, options: tuple[str, ...]
) -> None:
    gone = {"audio_filepath": "gone.wav", "text": "um"}
    manifest.write_text(manifest.read_text() + json.dumps(gone) + "\n")
    assert evaluate(monkeypatch, CHECKPOINT, manifest, *options) == 1
    told = capsys.readouterr()
    assert "set" in told.out
    assert "1 utterances could not be decoded, first set: gone.wav" in told.err


@pytest.mark.parametrize(
    ("name", "leftover"),
    [
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("config.json", {"attn_implementation": "flash_attention_2", "num_hidden_layers": 9}),
        ("tokenizer_config.json", {"normalizer_file": "/etc/hostname", "tokenizer_file": "/none"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.py", None]}}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.py"}}),
    ],
)
def test_settings_of_a_training_run_change_nothing(
    monkeypatch, manifest: Path, tmp_path: Path, name: str, leftover: dict[str, object]
) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "trained")
    document = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(document | leftover))
    assert evaluate(monkeypatch, folder, manifest) == 0


def test_a_file_beyond_its_limit_is_not_read(
    monkeypatch, capsys, manifest: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "large")
    os.truncate(folder / "tokenizer_config.json", 600_000_000)
    assert evaluate(monkeypatch, folder, manifest) != 0
    assert "tokenizer_config.json has 600,000,000 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [(), ("vocab.json",), ("tokenizer_config.json",)])
def test_a_missing_tokenizer_is_refused(
    monkeypatch, capsys, manifest: Path, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    bare = tmp_path / "checkpoint-1000"
    files = ("config.json", "generation_config.json", "preprocessor_config.json", *kept)
    bare.mkdir()
    for name in (*files, "model.safetensors"):
        shutil.copy(CHECKPOINT / name, bare)
    assert evaluate(monkeypatch, bare, manifest) == 1
    assert "checkpoint-1000 has no tokenizer" in capsys.readouterr().err
