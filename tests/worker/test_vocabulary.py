"""Experts with tokens that the base does not have: their rows are kept, and nothing contradicts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from app.contract.errors import AfluenteError, InvalidRequestError
from app.contract.recipe import parse_request
from app.contract.settings import Settings
from app.services.preparation import prepare, source_policy
from tests.tiny_whisper import WEIGHTS, noisy, variant
from tests.worker.test_evaluation_job import SAMPLES
from worker.merging.local import LocalMerge, merge_recipe
from worker.merging.sweep import sweep_recipe

BASE = SAMPLES / "checkpoints/base"
EMBEDDING, OUTPUT = "model.decoder.embed_tokens.weight", "proj_out.weight"
SIZE = 299


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", device="cpu", threads=2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return variant(BASE, tmp_path_factory.mktemp("plain") / "plain", noisy(5))


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grow(tmp_path_factory.mktemp("grown") / "grown", ["<|eh|>", "<|um|>"])


def grow(folder: Path, tokens: Sequence[str], seed: int = 1, *, pad: int | None = None) -> Path:
    """Have transformers add tokens to the base, and save it with random changes."""
    torch.manual_seed(seed)
    processor = WhisperProcessor.from_pretrained(BASE)
    processor.tokenizer.add_tokens(list(tokens))
    model = WhisperForConditionalGeneration.from_pretrained(BASE)
    model.resize_token_embeddings(
        len(processor.tokenizer), pad_to_multiple_of=pad, mean_resizing=False
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def recipe(experts: Sequence[Path], base: Path | None = BASE, **fields: Any) -> dict[str, Any]:
    named = {} if base is None else {"base": str(base)}
    listed = [{"uri": str(e), "name": f"expert{n}"} for n, e in enumerate(experts)]
    return {**named, "checkpoints": listed, "method": "task_arithmetic", **fields}


def merge(experts: Sequence[Path], folder: Path, settings: Settings, **fields: Any) -> LocalMerge:
    return merge_recipe(recipe(experts, **fields), folder, settings)


def test_the_base_s_rows_are_merged_and_the_others_carried_over(
    grown: Path, plain: Path, settings: Settings, tmp_path: Path
) -> None:
    made = merge([grown, plain], tmp_path / "m", settings)
    found, expert = load_file(made.folder / WEIGHTS), load_file(grown / WEIGHTS)
    assert found[EMBEDDING].shape == expert[EMBEDDING].shape == (SIZE + 2, 64)
    assert torch.equal(found[EMBEDDING][SIZE:], expert[EMBEDDING][SIZE:])
    # The other rows and tensors are what they are without the added ones.
    small = shutil.copytree(BASE, tmp_path / "small")
    save_file(expert | {EMBEDDING: expert[EMBEDDING][:SIZE].clone()}, small / WEIGHTS)
    wanted = load_file(merge([small, plain], tmp_path / "n", settings).folder / WEIGHTS)
    assert torch.equal(found.pop(EMBEDDING)[:SIZE], wanted.pop(EMBEDDING))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    # The artifact loads, knows the tokens, and has no other file of the base's tokenizer.
    model = WhisperForConditionalGeneration.from_pretrained(made.folder)
    tokenizer = WhisperProcessor.from_pretrained(made.folder).tokenizer
    assert torch.equal(model.proj_out.weight[SIZE:], expert[EMBEDDING][SIZE:])
    assert tokenizer.convert_tokens_to_ids(["<|eh|>", "<|um|>"]) == [SIZE, SIZE + 1]
    assert (made.folder / "tokenizer.json").read_bytes() == (grown / "tokenizer.json").read_bytes()
    assert not (made.folder / "vocab.json").exists()


def test_added_tokens_are_recorded_planned_and_warned_of(
    grown: Path, plain: Path, settings: Settings, tmp_path: Path
) -> None:
    made = merge([plain, grown], tmp_path / "m", settings)
    assert json.loads((made.folder / "recipe.json").read_text())["vocabulary"] == {
        "reference_size": SIZE,
        "size": SIZE + 2,
        "tokenizer": "expert1",
        "added": [
            {"id": SIZE, "token": "<|eh|>", "from": ["expert1"]},
            {"id": SIZE + 1, "token": "<|um|>", "from": ["expert1"]},
        ],
    }
    (warning,) = [one for one in made.warnings if one["code"] == "vocabulary_grew"]
    assert "expert1: 2 rows beyond the 299" in warning["message"]
    assert "<|eh|>" in warning["message"]
    prepared = prepare(
        parse_request(recipe([plain, grown])).recipe, source_policy(settings, None, any_path=True)
    )
    plan = prepared.plan.as_document()
    steps = {step["name"]: step for step in plan["tensors"]}
    assert steps[f"{EMBEDDING}[299:301]"]["treatment"] == "carry"
    assert plan["files"][0]["bytes"] == (made.folder / WEIGHTS).stat().st_size


def test_each_expert_s_own_tokens_are_kept_in_any_dtype_and_shards(
    grown: Path, settings: Settings, tmp_path: Path
) -> None:
    # The second expert has the first's tokens, with its rows, and more.
    more = grow(tmp_path / "more", ["<|eh|>", "<|um|>", "<|ah|>"], seed=2, pad=4)
    tensors, shared = load_file(more / WEIGHTS), load_file(grown / WEIGHTS)[EMBEDDING][SIZE:]
    tensors[EMBEDDING][SIZE : SIZE + 2] = shared
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    tensors[OUTPUT] = tensors[EMBEDDING].clone()
    save_file(tensors, more / WEIGHTS)
    half = variant(grown, tmp_path / "half", lambda name, tensor: tensor.bfloat16())
    output = {"dtype": "float32", "max_shard_size": "100KB"}
    made = merge([half, more], tmp_path / "m", settings, output=output)
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    assert not [name for name in index["weight_map"] if "[" in name]
    model = WhisperForConditionalGeneration.from_pretrained(made.folder)
    rows = model.model.decoder.embed_tokens.weight[SIZE:]
    assert torch.equal(rows, tensors[EMBEDDING][SIZE:].float())
    added = json.loads((made.folder / "recipe.json").read_text())["vocabulary"]["added"]
    assert [len(one["from"]) for one in added] == [2, 2, 1, 1, 1]
    assert added[2]["token"] == "<|ah|>"
    assert added[3]["token"] is None  # a row that only pads
    # A copy of the tied rows must be one there too.
    tensors[OUTPUT][-1] += 1
    save_file(tensors, more / WEIGHTS)
    with pytest.raises(AfluenteError, match=rf"{OUTPUT}\[.*\] is stored and differs"):
        merge([half, more], tmp_path / "n", settings)


def test_without_a_base_the_first_checkpoint_is_the_reference(
    grown: Path, settings: Settings, tmp_path: Path
) -> None:
    made = merge([BASE, grown], tmp_path / "m", settings, base=None, method="soup")
    found, expert = load_file(made.folder / WEIGHTS), load_file(grown / WEIGHTS)
    assert torch.equal(found[EMBEDDING][SIZE:], expert[EMBEDDING][SIZE:])
    with pytest.raises(AfluenteError, match=r"vocab_size 299, that of .* 301"):
        merge([grown, BASE], tmp_path / "n", settings, base=None, method="soup")


def test_an_untied_output_has_the_rows_too(grown: Path, settings: Settings, tmp_path: Path) -> None:
    folders = []
    for source in (BASE, grown):
        folder = Path(shutil.copytree(source, tmp_path / source.name))
        config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
        (folder / "config.json").write_text(json.dumps(config))
        tensors = load_file(folder / WEIGHTS)
        save_file(tensors | {OUTPUT: tensors[EMBEDDING] + 1}, folder / WEIGHTS)
        folders.append(folder)
    made = merge_recipe(recipe(folders[1:], folders[0]), tmp_path / "m", settings)
    found, expert = load_file(made.folder / WEIGHTS), load_file(folders[1] / WEIGHTS)
    for name in (EMBEDDING, OUTPUT):
        assert torch.equal(found[name][SIZE:], expert[name][SIZE:])


def test_every_point_of_a_sweep_has_the_rows(
    grown: Path, settings: Settings, tmp_path: Path
) -> None:
    parameters = {"scaling_coefficient": [0.5, 1.0]}
    sweep_recipe(recipe([grown]) | {"parameters": parameters}, {}, tmp_path / "s", settings)
    folders = [path.parent for path in (tmp_path / "s").glob(f"*/{WEIGHTS}")]
    expert = load_file(grown / WEIGHTS)[EMBEDDING]
    for folder in folders:
        assert torch.equal(load_file(folder / WEIGHTS)[EMBEDDING][SIZE:], expert[SIZE:])
    assert len(folders) == 2


def test_one_token_with_two_rows_is_refused_by_token_and_experts(
    grown: Path, settings: Settings, tmp_path: Path
) -> None:
    other = variant(grown, tmp_path / "other", lambda name, tensor: tensor.clone())
    tensors = load_file(other / WEIGHTS)
    tensors[EMBEDDING][SIZE + 1, 3] += 0.5
    save_file(tensors, other / WEIGHTS)
    said = r"300 \('<\|um\|>'\).*expert0.*grown.*expert1.*other"
    with pytest.raises(AfluenteError, match=said):
        merge([grown, other], tmp_path / "m", settings)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["<|eh|>", "<|oh|>"], r"300 is '<\|oh\|>' here and '<\|um\|>' in expert0"),
        (["<|eh|>", "<|x|>", "<|um|>"], r"300 is '<\|x\|>' here and '<\|um\|>' in expert0"),
    ],
)
def test_tokens_that_contradict_are_refused_before_the_merge(
    tokens: list[str], said: str, grown: Path, settings: Settings, tmp_path: Path
) -> None:
    other = grow(tmp_path / "other", tokens)
    with pytest.raises(AfluenteError, match=said) as refused:
        merge([grown, other], tmp_path / "m", settings)
    assert refused.value.param == "checkpoints[1].uri"


def test_rows_of_tokens_that_nobody_names_are_refused(
    grown: Path, settings: Settings, tmp_path: Path
) -> None:
    folder = shutil.copytree(grown, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(AfluenteError, match=r"2 tokens more than the 299 .* no tokenizer"):
        merge([folder], tmp_path / "m", settings)


def test_methods_that_need_calibration_refuse_added_tokens(
    grown: Path, settings: Settings, tmp_path: Path
) -> None:
    datasets = [{"name": "d", "uri": "file:///manifest.jsonl"}]
    fields = {"method": "fisher", "calibration": {"datasets": datasets}}
    with pytest.raises(InvalidRequestError, match=r"tokens beyond .* cannot be calibrated"):
        merge([grown, BASE], tmp_path / "m", settings, **fields)
