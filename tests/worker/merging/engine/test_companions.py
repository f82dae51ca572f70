"""What an artifact has besides tensors is what transformers 4 and 5 both read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.contract.errors import InvalidCheckpointError, SourceChangedError
from app.sources.completion import copied_files
from tests.tiny_whisper import variant
from worker.merging.engine.job import Job
from worker.merging.engine.run import run

Make = Callable[..., Job]


@pytest.fixture
def reference(base_folder: Path, tmp_path: Path) -> Path:
    return variant(base_folder, tmp_path / "reference", lambda name, tensor: tensor)


def companions(make: Make, reference: Path) -> Path:
    return run(make({"checkpoints": [str(reference)], "method": "soup"})).folder


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_the_config_says_its_dtype_to_both(make: Make, reference: Path) -> None:
    document = {
        "checkpoints": [str(reference)],
        "method": "soup",
        "output": {"dtype": "bfloat16"},
    }
    config = load(run(make(document)).folder / "config.json")
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["architectures"] == ["WhisperForConditionalGeneration"]


def test_a_list_of_extra_special_tokens_goes_by_the_name_that_both_read(
    make: Make, reference: Path
) -> None:
    config = {"tokenizer_class": "WhisperTokenizer", "extra_special_tokens": ["<|a|>", "<|b|>"]}
    (reference / "tokenizer_config.json").write_text(json.dumps(config))
    written = load(companions(make, reference) / "tokenizer_config.json")
    assert written == {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "additional_special_tokens": ["<|a|>", "<|b|>"],
    }


def test_the_vocabulary_is_copied_to_the_byte(make: Make, reference: Path) -> None:
    odd = (reference / "vocab.json").read_bytes().replace(b"{", b"{ \n ")
    (reference / "vocab.json").write_bytes(odd)
    assert (companions(make, reference) / "vocab.json").read_bytes() == odd


def test_a_vocabulary_that_is_exchanged_while_merging_is_not_copied(
    make: Make, reference: Path, tmp_path: Path
) -> None:
    job = make({"checkpoints": [str(reference)], "method": "soup"})
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    local = job.experts[0]
    paths = {**local.paths, "vocab.json": secret}
    with pytest.raises(SourceChangedError, match=r"vocab\.json"):
        copied_files(replace(local, paths=paths))


@pytest.mark.parametrize("given", ["processor_config.json", "preprocessor_config.json"])
def test_each_processor_file_is_made_from_the_other(
    given: str, make: Make, reference: Path
) -> None:
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 8}
    nested = {"feature_extractor": extractor, "processor_class": "WhisperProcessor"}
    (reference / "preprocessor_config.json").unlink()
    content = nested if given == "processor_config.json" else extractor
    (reference / given).write_text(json.dumps(content))
    folder = companions(make, reference)
    assert load(folder / "processor_config.json")["feature_extractor"].items() >= extractor.items()
    assert load(folder / "preprocessor_config.json").items() >= extractor.items()


def test_the_recipe_names_no_path_and_no_time(make: Make, reference: Path, tmp_path: Path) -> None:
    folder = companions(make, reference)
    text = (folder / "recipe.json").read_text()
    assert str(tmp_path) not in text
    recipe = load(folder / "recipe.json")
    assert set(recipe) == {
        "base",
        "checkpoints",
        "method",
        "parameters",
        "rules",
        "seed",
        "output",
        "torch",
        "device",
    }
    assert len(recipe["checkpoints"][0]["sha256"]) == 64


@pytest.mark.parametrize(
    "name",
    ["tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "vocab.json"],
)
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_companion_is_refused_by_name_before_anything_is_merged(
    name: str, content: bytes, make: Make, reference: Path
) -> None:
    (reference / name).write_bytes(content)
    with pytest.raises(InvalidCheckpointError, match=name):
        make({"checkpoints": [str(reference)], "method": "soup"})
