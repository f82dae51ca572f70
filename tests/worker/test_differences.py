"""Experts as differences merge as the full checkpoints that they are the differences of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from app.contract.catalogue import CATALOGUE
from app.contract.errors import AfluenteError, InvalidRequestError, SourceChangedError
from app.contract.recipe import parse_request
from app.contract.settings import Settings
from app.planning import cost
from app.services.preparation import Prepared, prepare, source_policy
from app.sources.policy import SourcePolicy
from app.storage.leases import JobKind
from tests.gpu_stand_in import GPU, ThreadWithGpu, stand_in
from tests.tiny_whisper import WEIGHTS, make_base, noisy, variant
from tests.worker.test_evaluation_job import SAMPLES, Service, service, spec
from worker.merging.engine import schedule
from worker.merging.engine.run import run
from worker.merging.local import LocalMerge, fetch_all, make_job, merge_recipe
from worker.systems import Checkpoints, System

__all__ = ["service", "spec"]

QUERY = "model.encoder.layers.0.self_attn.q_proj.weight"
EMBEDDING, OUTPUT = "model.decoder.embed_tokens.weight", "proj_out.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def experts(base: Path) -> list[tuple[Path, Path]]:
    """Two experts, each as its difference and in full."""
    made = []
    for seed in (1, 2):
        full = variant(base, base.parent / f"full{seed}", noisy(seed))
        made.append((difference(base, full, base.parent / f"difference{seed}"), full))
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", device="cpu", threads=2)


def difference(
    base: Path, full: Path, folder: Path, change: Callable[[Tensors], Any] = lambda tensors: None
) -> Path:
    """Write a folder that holds a checkpoint minus the base, and nothing else."""
    folder.mkdir()
    ours, theirs = load_file(base / WEIGHTS), load_file(full / WEIGHTS)
    tensors = {name: tensor - ours[name] for name, tensor in theirs.items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


def recipe(base: Path, experts: list[Any], **fields: Any) -> dict[str, Any]:
    listed = [one if isinstance(one, dict) else {"uri": str(one)} for one in experts]
    return {"base": str(base), "checkpoints": listed, "method": "soup", **fields}


def of(folder: Path) -> dict[str, Any]:
    return {"uri": str(folder), "form": "difference"}


def merge(
    base: Path, experts: list[Any], output: Path, settings: Settings, **fields: Any
) -> LocalMerge:
    return merge_recipe(recipe(base, experts, **fields), output, settings)


def prepared(base: Path, experts: list[Any], settings: Settings, **fields: Any) -> Prepared:
    parsed = parse_request(recipe(base, experts, **fields))
    return prepare(parsed.recipe, source_policy(settings, None, any_path=True))


def assert_close(found: Tensors, wanted: Tensors, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        error = (found[name].double() - tensor.double()).abs().max()
        assert error <= tolerance * tensor.double().abs().max(), name


@pytest.mark.parametrize(
    "method",
    sorted(m for m, kind in CATALOGUE.items() if not kind.draws and not kind.needs_calibration),
)
def test_every_method_merges_differences_as_the_full_checkpoints(
    method: str,
    base: Path,
    experts: list[tuple[Path, Path]],
    settings: Settings,
    tmp_path: Path,
) -> None:
    # The drawing methods seed by the expert's digest, so that their draws differ by its form.
    limit = CATALOGUE[method].max_experts
    most = limit and limit - CATALOGUE[method].counts_base
    forms = [[of(experts[0][0]), of(experts[1][0])], [experts[0][1], experts[1][1]]]
    found, wanted = (
        load_file(
            merge(base, form[:most], tmp_path / f"m{n}", settings, method=method).folder / WEIGHTS
        )
        for n, form in enumerate(forms)
    )
    assert_close(found, wanted, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_difference_is_added_to_the_base_in_float32(
    dtype: torch.dtype,
    base: Path,
    experts: list[tuple[Path, Path]],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = {n: t.to(dtype) for n, t in load_file(experts[0][0] / WEIGHTS).items()}
    (tmp_path / "d").mkdir()
    save_torch_state_dict(stored, tmp_path / "d", max_shard_size="8KB")
    assert (tmp_path / "d/model.safetensors.index.json").exists()
    made = merge(base, [of(tmp_path / "d")], tmp_path / "m", settings)
    ours, found = load_file(base / WEIGHTS), load_file(made.folder / WEIGHTS)
    for name, tensor in ours.items():
        assert torch.equal(found[name], tensor + stored[name].float()), name
    # The same in many blocks and stretches, none of which ends with a row.
    monkeypatch.setattr(cost, "BLOCK_ENTRIES", 100)
    monkeypatch.setattr(cost, "STRETCH_ENTRIES", 230)
    again = merge(base, [of(tmp_path / "d")], tmp_path / "n", settings)
    assert (again.folder / WEIGHTS).read_bytes() == (made.folder / WEIGHTS).read_bytes()


def test_a_merge_of_differences_on_a_gpu_is_that_on_the_cpu(
    base: Path,
    experts: list[tuple[Path, Path]],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(schedule, "Thread", ThreadWithGpu)
    rules = [{"match": "*decoder*", "method": "keep_base"}]
    on_cpu, on_gpu = (
        load_file(
            merge(
                base,
                [of(experts[0][0])],
                tmp_path / device.replace(":", "_"),
                settings.model_copy(update={"device": device}),
                method="iso_c",
                rules=rules,
            ).folder
            / WEIGHTS
        )
        for device in ("cpu", str(GPU))
    )
    assert_close(on_gpu, on_cpu, 2e-5)


def test_the_form_is_recorded_and_planned(
    base: Path, experts: list[tuple[Path, Path]], settings: Settings, tmp_path: Path
) -> None:
    made = merge(base, [of(experts[0][0]), experts[1][1]], tmp_path / "m", settings)
    recorded = json.loads((made.folder / "recipe.json").read_bytes())["checkpoints"]
    for sources in (recorded, made.sources["checkpoints"]):
        assert [source.get("form") for source in sources] == ["difference", None]
    assert recorded[0]["sha256"] == made.sources["checkpoints"][0]["sha256"]
    assert made.warnings == ()
    steps = {step.name: step for step in prepared(base, [of(experts[0][0])], settings).plan.steps}
    assert steps[QUERY].cost.bytes_read == 2 * 4 * 16 * 16


def test_a_difference_is_decoded_on_the_merge_s_base(
    base: Path, experts: list[tuple[Path, Path]], settings: Settings, tmp_path: Path
) -> None:
    folder, full = experts[0]
    policy = SourcePolicy(cache_dir=tmp_path / "cache", file_roots=None)
    system = System("d", folder.as_uri(), None, base.as_uri(), difference=True)
    checkpoints = Checkpoints(settings, policy)
    with checkpoints.of(system, lambda: False).opened() as opened:
        assert_close(load_file(opened / WEIGHTS), load_file(full / WEIGHTS), 1e-6)
        assert (opened / "vocab.json").exists()


def test_the_service_records_the_form_and_measures_the_expert(
    service: Service, spec: dict[str, Any], tmp_path: Path
) -> None:
    models = SAMPLES / "checkpoints"
    full = variant(models / "base", tmp_path / "full", noisy(1, 0.2))
    folder = difference(models / "base", full, tmp_path / "speech/learnt")
    experts = [{"uri": folder.as_uri(), "form": "difference"}]
    document = service.recipe("soup") | {"checkpoints": experts}
    created = service.client.post("/merges", json=document).json()
    assert created["checkpoints"][0]["form"] == "difference"
    service.work(JobKind.MERGE, created["id"])
    service.evaluate(created["id"], spec)
    table = service.client.get(f"/merges/{created['id']}/wer").json()
    systems = [table, table["systems"]["learnt"], table["systems"]["base"]]
    merge, learnt, base = (system["datasets"][0]["wer"] for system in systems)
    assert merge == learnt != base


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_stored_copy_of_a_tied_difference_must_be_equal(
    factor: float, base: Path, experts: list[tuple[Path, Path]], settings: Settings, tmp_path: Path
) -> None:
    folder = difference(
        base, experts[0][1], tmp_path / "d", lambda t: t.update({OUTPUT: factor * t[EMBEDDING]})
    )
    if factor == 1.0:
        made = merge(base, [of(folder)], tmp_path / "m", settings)
        assert OUTPUT not in load_file(made.folder / WEIGHTS)
    else:
        with pytest.raises(AfluenteError, match=f"{OUTPUT} is stored and differs"):
            merge(base, [of(folder)], tmp_path / "m", settings)


def cut_off(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])


REFUSED: dict[str, tuple[Callable[[Tensors], Any], Callable[[Path], Any], str]] = {
    "a tensor that is missing": (
        lambda t: t.pop(QUERY),
        lambda folder: None,
        rf"1 tensor is missing .* {QUERY}",
    ),
    "a tensor too many": (
        lambda t: t.update(more=torch.zeros(2)),
        lambda folder: None,
        "1 tensor is stored beyond .* more",
    ),
    "another shape": (
        lambda t: t.update({QUERY: torch.zeros(16, 17)}),
        lambda folder: None,
        rf"{QUERY} \(\[16, 17\] instead of \[16, 16\]\)",
    ),
    "integers": (
        lambda t: t.update({QUERY: t[QUERY].int()}),
        lambda folder: None,
        rf"{QUERY} \(I32 instead of F32\)",
    ),
    "a file that is cut off": (
        lambda t: None,
        cut_off,
        r"model.safetensors: tensor .* cut off",
    ),
    "pickled weights": (
        lambda t: None,
        lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
        r"pytorch_model\.bin only.*weights_only=True",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_added_is_refused_by_file_and_tensor(
    what: str, base: Path, experts: list[tuple[Path, Path]], settings: Settings, tmp_path: Path
) -> None:
    tensors, files, said = REFUSED[what]
    folder = difference(base, experts[0][1], tmp_path / "d", tensors)
    files(folder)
    with pytest.raises(AfluenteError, match=said) as refused:
        prepared(base, [experts[0][1], of(folder)], settings)
    assert refused.value.param == "checkpoints[1].uri"


def test_the_form_is_never_guessed(
    base: Path, experts: list[tuple[Path, Path]], settings: Settings
) -> None:
    folder, full = experts[0]
    with pytest.raises(AfluenteError, match='"form": "difference"'):
        prepared(base, [folder], settings)
    with pytest.raises(InvalidRequestError, match="needs the base") as refused:
        parse_request({"checkpoints": [str(full), of(folder)], "method": "soup"})
    assert refused.value.param == "checkpoints[1].form"
    with pytest.raises(InvalidRequestError, match="it has no form"):
        parse_request({"base": of(full), "checkpoints": [str(full)], "method": "soup"})
    # A folder with a config is a difference too, if it is said to be one.
    assert prepared(base, [of(full)], settings).experts[0].difference


def test_a_difference_that_is_cut_off_during_a_merge_is_named(
    base: Path, experts: list[tuple[Path, Path]], settings: Settings, tmp_path: Path
) -> None:
    folder = difference(base, experts[0][1], tmp_path / "d")
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    names = load_file(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = prepared(base, [of(folder)], settings)
    locals_ = fetch_all(found, source_policy(settings, None, any_path=True))
    job = make_job(found, locals_, tmp_path / "m", settings)
    opening = locals_[1].open

    def cut(name: str) -> Any:
        handle = opening(name)
        if name.startswith("model-"):
            cut_off(folder)
        return handle

    object.__setattr__(locals_[1], "open", cut)
    with pytest.raises(SourceChangedError, match=r"model-00001-of-00001\.safetensors ends within"):
        run(job)
