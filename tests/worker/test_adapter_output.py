"""A merge of adapters is published as an adapter: what PEFT makes of it is the full merge."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

from app.contract.errors import AfluenteError, InvalidRequestError
from app.contract.recipe import parse_request
from app.contract.settings import Settings
from app.services.preparation import prepare, source_policy
from app.storage.leases import JobKind
from tests.tiny_whisper import WEIGHTS, make_base, noisy, variant
from tests.worker.test_adapters import FORMS, adapter
from tests.worker.test_evaluation_job import SAMPLES, Service, service, spec
from worker.merging.linalg.low_rank import low_rank
from worker.merging.local import LocalMerge, merge_recipe

__all__ = ["service", "spec"]

ADAPTER = "adapter_model.safetensors"
QUERY = "model.encoder.layers.0.self_attn.q_proj.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapters(base: Path) -> list[Path]:
    """Two adapters, of rank 5 and 4."""
    return [
        adapter(base, base.parent / f"lora{seed}", seed=seed, **FORMS[form])[0]
        for seed, form in enumerate(("every linear layer", "listed"))
    ]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", device="cpu", threads=2)


def recipe(base: Path, experts: list[Path], **fields: Any) -> dict[str, Any]:
    document = {"base": str(base), "checkpoints": [str(e) for e in experts]}
    return document | {"method": "task_arithmetic"} | fields


def merge(
    base: Path, experts: list[Path], folder: Path, settings: Settings, **fields: Any
) -> LocalMerge:
    return merge_recipe(recipe(base, experts, **fields), folder, settings)


def of_rank(rank: int, **fields: Any) -> dict[str, Any]:
    return {"output": {"form": "lora", "rank": rank, **fields}}


def applied_by_peft(base: Path, folder: Path) -> Tensors:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, of what transformers deprecates
        model = WhisperForConditionalGeneration.from_pretrained(base)
        merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return dict(merged.state_dict())


def assert_changes(found: Tensors, wanted: Tensors, base: Path, tolerance: float) -> None:
    """The changes of the base must be equal, relative to the largest."""
    for name, before in load_file(base / WEIGHTS).items():
        change, expected = found[name] - before, wanted[name] - before
        assert (change - expected).norm() <= tolerance * (expected.norm() + 1e-3), name


def diagnostics(made: LocalMerge) -> dict[str, Any]:
    return dict(json.loads((made.folder / "diagnostics.json").read_text())["adapter"])


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "iso_c"])
def test_an_adapter_of_full_rank_is_the_merge(
    method: str, base: Path, adapters: list[Path], settings: Settings, tmp_path: Path
) -> None:
    # The sum of changes of rank 5 and 4 has rank 9; others may have any, up to the matrix's 16.
    rank = 9 if method == "task_arithmetic" else 40
    made = merge(base, adapters, tmp_path / "m", settings, method=method, **of_rank(rank))
    full = merge(base, adapters, tmp_path / "full", settings, method=method)
    wanted = load_file(full.folder / WEIGHTS)
    assert_changes(applied_by_peft(base, made.folder), wanted, base, 1e-5)
    assert diagnostics(made)["relative_error"] < 1e-6
    assert diagnostics(made)["tensors"][QUERY] < 1e-6
    assert made.warnings == full.warnings
    # It is an expert again.
    again = merge(base, [made.folder], tmp_path / "again", settings)
    assert_changes(load_file(again.folder / WEIGHTS), wanted, base, 1e-5)


def test_of_a_smaller_rank_the_error_is_the_least_and_told(
    base: Path, adapters: list[Path], settings: Settings, tmp_path: Path
) -> None:
    made = merge(base, adapters, tmp_path / "m", settings, **of_rank(3))
    full = load_file(merge(base, adapters, tmp_path / "full", settings).folder / WEIGHTS)
    found, before = applied_by_peft(base, made.folder), load_file(base / WEIGHTS)
    told = diagnostics(made)
    lost = whole = 0.0
    for name, error in told["tensors"].items():
        change = (full[name] - before[name]).double()
        left = (found[name] - full[name]).double().square().sum()
        least = torch.linalg.svdvals(change)[3:].square().sum()
        assert left == pytest.approx(float(least), rel=1e-4)
        assert error == pytest.approx(float((least / change.square().sum()).sqrt()), rel=1e-4)
        lost, whole = lost + float(least), whole + float(change.square().sum())
    assert told["rank"] == 3
    assert told["relative_error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    (warning,) = [one for one in made.warnings if one["code"] == "adapter_error"]
    assert "Rank 3" in warning["message"]


def test_the_files_are_as_planned_and_do_not_depend_on_threads(
    base: Path, adapters: list[Path], settings: Settings, tmp_path: Path
) -> None:
    how = of_rank(4, dtype="float16")
    prepared = prepare(
        parse_request(recipe(base, adapters, **how)).recipe,
        source_policy(settings, None, any_path=True),
    )
    made = merge(base, adapters, tmp_path / "m", settings, **how)
    single = settings.model_copy(update={"threads": 1})
    again = merge(base, adapters, tmp_path / "n", single, **how)
    names = {"adapter_config.json", ADAPTER, "recipe.json", "diagnostics.json"}
    assert {file["name"] for file in made.files} == names
    assert [file["sha256"] for file in made.files] == [file["sha256"] for file in again.files]
    planned = prepared.plan.as_document()["files"]
    size = (made.folder / ADAPTER).stat().st_size
    assert planned == [{"name": ADAPTER, "bytes": size}]
    stored = load_file(made.folder / ADAPTER)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    output = json.loads((made.folder / "recipe.json").read_text())["output"]
    assert (output["form"], output["rank"]) == ("lora", 4)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (7, 7), (5, 1)])
def test_the_factors_are_the_closest_of_their_rank(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    rank = min(3, *shape)
    a, b = low_rank(matrix, rank)
    assert (a.shape, b.shape) == ((rank, shape[1]), (shape[0], rank))
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert torch.allclose(b @ a, u[:, :rank] * s[:rank] @ v[:rank], atol=1e-9)
    a, b = low_rank(torch.zeros(shape), rank)
    assert not (b @ a).any()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "embeddings": (
        {"target_modules": ["embed_positions"]},
        "embed_positions.weight, which is not a",
    ),
    "convolutions": ({"target_modules": ["conv1"]}, "conv1.weight, which is not a linear"),
    "whole modules": (
        {"target_modules": ["q_proj"], "modules_to_save": ["fc1"]},
        "stores .*fc1.* whole",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_adapters_of_more_than_linear_layers_are_refused(
    what: str, base: Path, adapters: list[Path], settings: Settings, tmp_path: Path
) -> None:
    how, said = REFUSED[what]
    folder, _ = adapter(base, tmp_path / "lora", **how)
    with pytest.raises(AfluenteError, match=said) as refused:
        merge(base, [adapters[0], folder], tmp_path / "m", settings, **of_rank(4))
    assert refused.value.param == "checkpoints[1].uri"


def test_full_checkpoints_are_refused(
    base: Path, adapters: list[Path], settings: Settings, tmp_path: Path
) -> None:
    full = variant(base, tmp_path / "full", noisy(1))
    with pytest.raises(AfluenteError, match="is no LoRA adapter") as refused:
        merge(base, [full, adapters[0]], tmp_path / "m", settings, **of_rank(4))
    assert refused.value.param == "checkpoints[0].uri"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output": {"form": "lora"}}, "output"),
        ({"output": {"rank": 4}}, "output"),
        ({"output": {"form": "lora", "rank": 0}}, "output.rank"),
        ({"method": "soup", **of_rank(4)}, "method"),
        ({"method": "karcher", **of_rank(4)}, "method"),
        ({"rules": [{"match": "*", "method": "soup"}], **of_rank(4)}, "rules[0].method"),
        ({"base": None, "method": "soup", **of_rank(4)}, "output.form"),
    ],
)
def test_requests_that_make_no_adapter_are_refused_by_field(
    fields: dict[str, Any], param: str
) -> None:
    document = {"base": "/b", "checkpoints": ["/x", "/y"], "method": "task_arithmetic"}
    with pytest.raises(InvalidRequestError) as refused:
        parse_request(document | fields)
    assert param in [problem.param for problem in refused.value.as_problems()]


def test_the_published_adapter_is_what_is_measured(
    service: Service, spec: dict[str, Any], tmp_path: Path
) -> None:
    models = SAMPLES / "checkpoints"
    folder, _ = adapter(models / "base", tmp_path / "speech" / "lora", target_modules=["fc1"], r=64)
    document = service.recipe("task_arithmetic") | {"checkpoints": [folder.as_uri()], **of_rank(64)}
    merge_id = service.client.post("/merges", json=document).json()["id"]
    service.work(JobKind.MERGE, merge_id)
    service.evaluate(merge_id, spec)
    table = service.client.get(f"/merges/{merge_id}/wer").json()
    systems = [table, table["systems"]["lora"], table["systems"]["base"]]
    rates = [system["datasets"][0]["wer"] for system in systems]
    assert rates[0] == rates[1] != rates[2]
    card = service.client.get(f"/merges/{merge_id}/model-card").text
    assert "library_name: peft" in card
    assert "PeftModel.from_pretrained" in card
