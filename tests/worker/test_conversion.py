"""An artifact in CTranslate2's format: by its own converter, loaded by its own runtime."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from app.contract.errors import ConversionFailedError
from app.storage.leases import JobKind
from tests.tiny_whisper import make_base, noisy, variant
from tests.worker.test_evaluation_job import SAMPLES, UTTERANCES, Service, service, spec
from worker.conversion import convert
from worker.merging.local import merge_recipe
from worker.merging.sweep import sweep_recipe

__all__ = ["service", "spec"]

BASE = SAMPLES / "checkpoints" / "base"


def merged(service: Service, *also: str) -> str:
    recipe = service.recipe("soup") | {"output": {"also": also}}
    merge_id = str(service.client.post("/merges", json=recipe).json()["id"])
    service.work(JobKind.MERGE, merge_id)
    return merge_id


def test_formats_are_in_the_artifact_with_digests_in_the_tar_and_load_in_their_runtime(
    service: Service, tmp_path: Path
) -> None:
    merge_id = merged(service, "ctranslate2_int8", "ctranslate2_float16", "ctranslate2_int8")
    found = service.client.get(f"/merges/{merge_id}").json()
    assert found["status"] == "succeeded", found
    assert found["output"]["also"] == ["ctranslate2_int8", "ctranslate2_float16"]
    files = {file["name"]: file for file in found["artifacts"]}
    tar = service.client.get(f"/merges/{merge_id}/artifacts.tar").content
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.extractall(tmp_path, filter="data")
    for name, file in files.items():
        content = service.client.get(file["url"])
        assert content.status_code == 200
        assert hashlib.sha256(content.content).hexdigest() == file["sha256"]
        assert (tmp_path / merge_id / name).read_bytes() == content.content
    disposition = service.client.get(files["ctranslate2_int8/model.bin"]["url"]).headers
    assert disposition["content-disposition"] == 'attachment; filename="model.bin"'
    for name in ("ctranslate2_int8", "ctranslate2_float16"):
        model = ctranslate2.models.Whisper(str(tmp_path / merge_id / name), device="cpu")
        features = ctranslate2.StorageView.from_array(np.zeros((1, 40, 200), np.float32))
        assert model.encode(features).shape == [1, 100, 64]
    # What transformers loads has no other weights than before.
    assert load_file(tmp_path / merge_id / "model.safetensors")


def test_the_same_merge_has_the_same_bytes_on_the_command_line(
    service: Service, tmp_path: Path
) -> None:
    merge_id = merged(service, "ctranslate2_int8")
    served = service.client.get(f"/merges/{merge_id}/artifacts").json()["data"]
    recipe = service.recipe("soup") | {"output": {"also": ["ctranslate2_int8"]}}
    local = merge_recipe(recipe, tmp_path / "merge", service.settings)
    digests = {file["name"]: file["sha256"] for file in local.files}
    assert digests == {file["name"]: file["sha256"] for file in served}
    # What an evaluation converts from the safetensors is what was published.
    convert(tmp_path / "merge", tmp_path / "again", "ctranslate2_int8")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / "merge/ctranslate2_int8" / path.name).read_bytes()


def test_the_converted_rules_of_the_search_are_those_of_the_safetensors(tmp_path: Path) -> None:
    base = variant(BASE, tmp_path / "base", noisy(1))
    document = json.loads((base / "generation_config.json").read_bytes())
    rules = {"suppress_tokens": [7, 3], "begin_suppress_tokens": [9, 3], "is_multilingual": True}
    (base / "generation_config.json").write_text(json.dumps(document | rules))
    convert(base, tmp_path / "made", "ctranslate2_float32")
    made = json.loads((tmp_path / "made" / "config.json").read_bytes())
    assert (made["suppress_ids"], made["suppress_ids_begin"]) == ([3, 7], [9])


def test_a_merge_is_refused_at_once_by_a_worker_without_the_runtime(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    merge_id = merged(service, "ctranslate2_int8")
    error = service.client.get(f"/merges/{merge_id}").json()["error"]
    assert error["code"] == "conversion_failed"
    assert "pip install 'afluente[ctranslate2]'" in error["message"]
    assert merged(service)  # others are merged


def test_what_the_converter_refuses_is_said_with_the_way_out(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    words = json.loads((base / "vocab.json").read_bytes())
    del words["w5"]
    (base / "vocab.json").write_text(json.dumps(words))
    with pytest.raises(ConversionFailedError, match="no token 5; do without ctranslate2_int8"):
        convert(base, tmp_path / "made", "ctranslate2_int8")


@pytest.mark.parametrize(
    ("change", "file", "said"),
    [
        ({"activation_function": "relu"}, "config.json", "computes gelu"),
        ({"min_new_tokens": 3}, "generation_config.json", "sets min_new_tokens"),
    ],
)
def test_settings_that_the_runtime_does_not_obey_are_refused_before_anything_is_queued(
    service: Service, tmp_path: Path, change: dict[str, Any], file: str, said: str
) -> None:
    base = variant(BASE, tmp_path / "speech" / "base", lambda _, tensor: tensor)
    document = json.loads((base / file).read_bytes())
    (base / file).write_text(json.dumps(document | change))
    recipe = {"checkpoints": [base.as_uri()], "method": "soup"}
    dry = {"dry_run": "true"}
    assert service.client.post("/merges", json=recipe, params=dry).status_code == 200
    recipe |= {"output": {"also": ["ctranslate2_int8"]}}
    for params in (dry, {}):
        answer = service.client.post("/merges", json=recipe, params=params)
        assert answer.status_code == 422
        (problem,) = answer.json()["errors"]
        assert problem["param"] == "output.also"
        assert said in problem["message"]


def test_an_adapter_has_no_format(service: Service) -> None:
    output = {"form": "lora", "rank": 4, "also": ["ctranslate2_int8"]}
    answer = service.client.post("/merges", json=service.recipe("soup") | {"output": output})
    (problem,) = answer.json()["errors"]
    assert (problem["param"], "full weights" in problem["message"]) == ("output.also", True)


def test_formats_are_refused_for_other_models(service: Service, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path / "speech" / "bert"
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    BertModel(BertConfig(**size, intermediate_size=8)).save_pretrained(folder)
    recipe = {"checkpoints": [folder.as_uri()], "output": {"also": ["ctranslate2_int8"]}}
    answer = service.client.post("/merges", json=recipe | {"method": "soup"})
    assert "only Whisper" in answer.json()["errors"][0]["message"]


def test_an_evaluation_measures_merge_and_base_in_the_runtime(
    service: Service, spec: dict[str, Any]
) -> None:
    merge_id = merged(service)
    service.evaluate(merge_id, spec | {"compare_with": ["base"]})
    plain = service.decoded()
    service.evaluate(merge_id, spec | {"backend": "ctranslate2_int8", "compare_with": ["base"]})
    assert service.decoded() == plain + 2 * UTTERANCES  # nothing is taken for the other runtime's
    own, int8 = service.client.get(f"/merges/{merge_id}/wer").json()["datasets"]
    assert own["decoding"]["backend"] == "afluente"
    assert int8["decoding"]["backend"] == "ctranslate2_int8"
    assert "ctranslate2" in int8["decoding"]["versions"]
    assert "base" in int8["compared_with"]  # the base in the same runtime


def test_evaluations_that_the_runtime_cannot_do_are_refused_by_field(
    service: Service, spec: dict[str, Any]
) -> None:
    merge_id = merged(service)
    asked = spec | {"backend": "ctranslate2_int8", "search": "temperature_fallback"}
    answer = service.client.post(f"/merges/{merge_id}/evaluations", json=asked)
    (problem,) = answer.json()["errors"]
    assert (answer.status_code, problem["param"]) == (422, "backend")
    assert "no temperature_fallback" in problem["message"]


def test_every_point_of_a_sweep_has_the_format(service: Service, tmp_path: Path) -> None:
    recipe = service.recipe("task_arithmetic") | {"output": {"also": ["ctranslate2_int8"]}}
    swept = sweep_recipe(
        recipe, {"scaling_coefficient": [0.5, 1.0]}, tmp_path / "sweep", service.settings
    )
    made = {
        file["sha256"]
        for merge in swept.merges.values()
        for file in merge.files
        if file["name"] == "ctranslate2_int8/model.bin"
    }
    assert len(made) == 2
