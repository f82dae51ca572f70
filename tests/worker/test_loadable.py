"""Before merging, transformers loads all files of the artifact except tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from app.contract.errors import InvalidCheckpointError
from app.contract.settings import Settings
from tests.tiny_whisper import make_base
from worker.merging import local
from worker.merging.local import merge_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("loadable") / "base")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", device="cpu")


def merge(base: Path, output: Path, settings: Settings) -> Path:
    recipe = {"checkpoints": [str(base)], "method": "soup"}
    return merge_recipe(recipe, output, settings).folder


def test_it_is_loaded_once_until_it_changes(
    base: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    check = local.check_loadable

    def counted(folder: Path, label: str) -> None:
        loaded.append(label)
        check(folder, label)

    monkeypatch.setattr(local, "check_loadable", counted)
    one, two = (merge(base, tmp_path / name, settings) for name in ("one", "two"))
    assert len(loaded) == 1
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
    other = shutil.copytree(base, tmp_path / "other")
    (other / "merges.txt").write_text("#version: 0.3\n")
    merge(other, tmp_path / "three", settings)
    assert len(loaded) == 2


def test_what_transformers_cannot_load_is_refused_by_file_before_anything_is_merged(
    base: Path, settings: Settings, tmp_path: Path
) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}, "version": "1.0"}
    (other / "vocab.json").unlink()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InvalidCheckpointError, match="its tokenizer's files cannot be loaded"):
        merge(other, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "setting",
    [
        {"quantization_config": {"load_in_8bit": True, "quant_method": "bitsandbytes"}},
        {"attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "nonsense"},
        {"auto_map": {"AutoModel": "modeling.Evil"}},
        {"num_labels": 10**9},
        {"torch_dtype": "float1"},
        {"id2label": []},
    ],
)
def test_a_setting_of_the_training_run_does_not_keep_the_artifact_from_loading(
    setting: dict[str, object], base: Path, settings: Settings, tmp_path: Path
) -> None:
    from transformers import WhisperForConditionalGeneration

    other = shutil.copytree(base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | setting
    (other / "config.json").write_text(json.dumps(config))
    WhisperForConditionalGeneration.from_pretrained(merge(other, tmp_path / "out", settings))
