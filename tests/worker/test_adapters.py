"""LoRA adapters made by PEFT merge as what PEFT itself would make of them, beside full experts."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, WhisperForConditionalGeneration

from app.contract.catalogue import CATALOGUE
from app.contract.errors import AfluenteError, InvalidRequestError, NonFiniteInputError
from app.contract.evaluation import EvaluationSpec
from app.contract.recipe import parse_request
from app.contract.settings import Settings
from app.planning import cost
from app.services.preparation import Prepared, prepare, source_policy
from app.sources.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from app.storage.leases import JobKind
from tests.gpu_stand_in import GPU, ThreadWithGpu, stand_in
from tests.tiny_whisper import WEIGHTS, make_base, noisy, variant
from tests.worker.test_evaluation_job import SAMPLES, UTTERANCES, Service, service, spec
from worker.evaluation.local import evaluate_checkpoint
from worker.merging.engine import schedule
from worker.merging.local import LocalMerge, merge_recipe

__all__ = ["service", "spec"]

QUERY = "model.encoder.layers.0.self_attn.q_proj"
EMBEDDING = "model.decoder.embed_tokens.weight"
FORMS: dict[str, dict[str, Any]] = {
    "listed": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 16},
    "every linear layer": {"target_modules": "all-linear", "r": 5, "lora_alpha": 7},
    "rank-stabilised, by expression": {
        "target_modules": r".*decoder.*\.(fc1|fc2)",
        "use_rslora": True,
    },
    "ranks by pattern": {
        "target_modules": ["q_proj", "fc1"],
        "rank_pattern": {r"^model\.encoder.*q_proj": 3, "fc1": 6},
        "alpha_pattern": {"q_proj": 9},
    },
    "with whole modules and biases": {
        "target_modules": ["q_proj", "out_proj"],
        "modules_to_save": ["layer_norm", "conv1"],
        "bias": "all",
    },
    "convolutions and embeddings": {
        "target_modules": ["conv1", "conv2", "embed_positions", "embed_tokens"]
    },
    "magnitudes": {"target_modules": ["q_proj", "fc1", "conv2"], "use_dora": True},
}
Tensors = dict[str, torch.Tensor]
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", device="cpu", threads=2)


@pytest.fixture(scope="module")
def adapters(base: Path) -> list[tuple[Path, Path]]:
    """Two adapters, each with the full checkpoint that PEFT makes of it."""
    return [
        adapter(base, base.parent / f"lora{seed}", seed=seed, **FORMS[form])
        for seed, form in enumerate(("every linear layer", "listed"))
    ]


def adapter(
    base: Path,
    folder: Path,
    *,
    seed: int = 0,
    kind: Any = WhisperForConditionalGeneration,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> tuple[Path, Path]:
    """Have PEFT save an adapter of random factors, and the checkpoint that it merges it into."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, of what transformers deprecates
        _save(base, folder, kind, dtype, settings)
    return folder, folder.with_name(f"{folder.name}-full")


def _save(base: Path, folder: Path, kind: Any, dtype: torch.dtype, settings: Any) -> None:
    model = get_peft_model(kind.from_pretrained(base), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "original_module" not in name:
                parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).to(dtype))
    model.save_pretrained(folder)
    if dtype is not torch.float32:
        stored = load_file(folder / ADAPTER_WEIGHTS)
        save_file({n: t.to(dtype) for n, t in stored.items()}, folder / ADAPTER_WEIGHTS)
    full = folder.with_name(f"{folder.name}-full")
    shutil.copytree(base, full)
    model.merge_and_unload().save_pretrained(full)


def merge(
    base: Path, experts: list[Path], output: Path, settings: Settings, **recipe: Any
) -> LocalMerge:
    document = {"base": str(base), "checkpoints": [str(e) for e in experts], "method": "soup"}
    return merge_recipe(document | recipe, output, settings)


def prepared(
    base: Path | None, experts: list[Path], settings: Settings, method: str = "soup"
) -> Prepared:
    document = {"checkpoints": [str(e) for e in experts], "method": method}
    document |= {"base": str(base)} if base else {}
    return prepare(parse_request(document).recipe, source_policy(settings, None, any_path=True))


def assert_close(folder: Path, expected: Path, tolerance: float = 3e-7) -> None:
    found, wanted = load_file(folder / WEIGHTS), load_file(expected / WEIGHTS)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        error = (found[name].double() - tensor.double()).abs().max()
        assert error <= tolerance * tensor.double().abs().max(), name


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_alone_is_what_peft_makes_of_it(
    form: str, base: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, full = adapter(base, tmp_path / "lora", **FORMS[form])
    made = merge(base, [folder], tmp_path / "m", settings)
    assert_close(made.folder, full)
    assert not any(torch.equal(*pair) for pair in changed(base, full, folder))
    # The same in many blocks and stretches, none of which ends with a row.
    monkeypatch.setattr(cost, "BLOCK_ENTRIES", 100)
    monkeypatch.setattr(cost, "STRETCH_ENTRIES", 230)
    again = merge(base, [folder], tmp_path / "n", settings)
    assert (again.folder / WEIGHTS).read_bytes() == (made.folder / WEIGHTS).read_bytes()


def changed(base: Path, full: Path, folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the weights of the modules that an adapter changes, before and after."""
    before, after = load_file(base / WEIGHTS), load_file(full / WEIGHTS)
    modules = {
        name.removeprefix("base_model.model.").partition(".lora_")[0]
        for name in load_file(folder / ADAPTER_WEIGHTS)
        if ".lora_" in name
    }
    return [(before[f"{module}.weight"], after[f"{module}.weight"]) for module in modules]


def test_factors_of_half_precision_are_widened(
    base: Path, settings: Settings, tmp_path: Path
) -> None:
    how = FORMS["every linear layer"] | {"dtype": torch.bfloat16}
    folder, full = adapter(base, tmp_path / "lora", **how)
    assert_close(merge(base, [folder], tmp_path / "m", settings).folder, full)


def test_weights_stored_as_their_transpose_are_changed_by_the_transpose(
    settings: Settings, tmp_path: Path
) -> None:
    # GPT-2's Conv1D. c_proj is square, so that only the config says which way it is.
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=6))
    model.save_pretrained(tmp_path / "base")
    folder, full = adapter(
        tmp_path / "base",
        tmp_path / "lora",
        kind=GPT2LMHeadModel,
        target_modules=["c_attn", "c_proj"],
        fan_in_fan_out=True,
    )
    assert_close(merge(tmp_path / "base", [folder], tmp_path / "m", settings).folder, full)


@pytest.mark.parametrize(
    "method",
    sorted(m for m, kind in CATALOGUE.items() if not kind.draws and not kind.needs_calibration),
)
def test_every_method_merges_adapters_and_full_checkpoints_together(
    method: str,
    base: Path,
    adapters: list[tuple[Path, Path]],
    settings: Settings,
    tmp_path: Path,
) -> None:
    # The drawing methods seed by the expert's digest, so that their draws differ by its form. Those
    # that listen are in test_calibration.py.
    other = variant(base, tmp_path / "other", noisy(3))
    limit = CATALOGUE[method].max_experts
    most = limit and limit - CATALOGUE[method].counts_base
    forms = [[adapters[0][n], other, adapters[1][n]][:most] for n in (0, 1)]
    lora, full = (
        merge(base, experts, tmp_path / f"m{n}", settings, method=method).folder
        for n, experts in enumerate(forms)
    )
    assert_close(lora, full, tolerance=2e-5)


def test_a_merge_of_adapters_on_a_gpu_is_that_on_the_cpu(
    base: Path,
    adapters: list[tuple[Path, Path]],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(schedule, "Thread", ThreadWithGpu)
    on_cpu, on_gpu = (
        merge(
            base,
            [adapters[0][0]],
            tmp_path / device.replace(":", "_"),
            settings.model_copy(update={"device": device}),
            method="iso_c",
            rules=[{"match": "*decoder*", "method": "keep_base"}],
        ).folder
        for device in ("cpu", str(GPU))
    )
    assert_close(on_gpu, on_cpu, tolerance=2e-5)


def test_the_plan_counts_the_bytes_of_base_and_factors(
    base: Path, adapters: list[tuple[Path, Path]], settings: Settings
) -> None:
    steps = {step.name: step for step in prepared(base, [adapters[1][0]], settings).plan.steps}
    assert steps[f"{QUERY}.weight"].cost.bytes_read == 4 * (16 * 16 + 2 * 4 * 16)
    assert steps[f"{QUERY}.bias"].cost.bytes_read == 4 * 16


def test_the_record_has_the_adapters_own_digest_and_no_warning_of_files_it_never_has(
    base: Path, adapters: list[tuple[Path, Path]], settings: Settings, tmp_path: Path
) -> None:
    made = merge(base, [adapters[0][0], adapters[1][0]], tmp_path / "m", settings)
    digests = [source["sha256"] for source in made.sources["checkpoints"]]
    recorded = json.loads((made.folder / "recipe.json").read_bytes())["checkpoints"]
    assert [source["sha256"] for source in recorded] == digests
    assert len({*digests, made.sources["base"]["sha256"]}) == 3
    assert made.warnings == ()


def test_an_adapter_of_a_model_of_another_name_is_merged_with_a_warning(
    base: Path, settings: Settings, tmp_path: Path
) -> None:
    folder, _ = adapter(base, tmp_path / "lora", target_modules=["q_proj"])
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    for name, said in (("openai/whisper-large-v3", True), ("openai/whisper-base", False)):
        config["base_model_name_or_path"] = name
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
        codes = [warning["code"] for warning in prepared(base, [folder], settings).warnings]
        assert ("adapter_of_another_base" in codes) == said


def configured(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config | fields))

    return change


def stored(change: Callable[[Tensors], Any]) -> Change:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        change(tensors)
        save_file(tensors, folder / ADAPTER_WEIGHTS)

    return rewrite


def cut_off(folder: Path) -> None:
    path = folder / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])


A, B = (f"base_model.model.{QUERY}.lora_{factor}.weight" for factor in "AB")
REFUSED: dict[str, tuple[Change, list[str]]] = {
    "a module that is not there": (
        stored(lambda t: t.update({A.replace("0", "7"): t.pop(A), B.replace("0", "7"): t.pop(B)})),
        [ADAPTER_WEIGHTS, A.replace("0", "7"), "does not have"],
    ),
    "a factor alone": (stored(lambda t: t.pop(B)), [ADAPTER_WEIGHTS, A, "lora_B"]),
    "another rank": (configured(r=3), [ADAPTER_WEIGHTS, A, B, "rank 3"]),
    "another size": (
        stored(lambda t: t.update({A: torch.zeros(4, 17)})),
        [A, "[16, 17]", "[16, 16]"],
    ),
    "integers": (stored(lambda t: t.update({A: t[A].int()})), [A, "I32"]),
    "a tensor of another kind": (
        stored(lambda t: t.update({f"base_model.model.{QUERY}.lora_E": torch.zeros(4)})),
        [ADAPTER_WEIGHTS, "lora_E"],
    ),
    "a tied tensor": (
        stored(lambda t: t.update({"base_model.model.proj_out.weight": torch.zeros(51, 16)})),
        ["proj_out.weight", "embed_tokens"],
    ),
    "one of two tied tensors": (
        stored(lambda t: t.update({f"base_model.model.{EMBEDDING}": torch.zeros(51, 16)})),
        [EMBEDDING, "ties"],
    ),
    "a file that is cut off": (cut_off, [ADAPTER_WEIGHTS, "base_model.model", "cut off"]),
    "pickled weights": (
        lambda folder: (folder / ADAPTER_WEIGHTS).rename(folder / "adapter_model.bin"),
        ["adapter_model.bin", "python -c", "weights_only=True"],
    ),
    "no config": (lambda folder: (folder / ADAPTER_CONFIG).unlink(), [ADAPTER_CONFIG]),
    "another kind of adapter": (configured(peft_type="IA3"), ["peft_type", "IA3"]),
    "a start that changes the base": (
        configured(init_lora_weights="pissa_niter_4"),
        ["init_lora_weights", "path_initial_model_for_weight_conversion"],
    ),
    "biases of the factors": (configured(lora_bias=True), ["lora_bias", "merge_and_unload"]),
    "a field of another type": (configured(r="four"), [ADAPTER_CONFIG, "r:", "four"]),
    "magnitudes that are not there": (configured(use_dora=True), [A, "lora_magnitude_vector"]),
    "a pattern that is none": (
        configured(rank_pattern={"(q_proj": 2}),
        [ADAPTER_CONFIG, "pattern", "(q_proj"],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_merged_is_refused_by_file_tensor_and_field(
    what: str,
    base: Path,
    adapters: list[tuple[Path, Path]],
    settings: Settings,
    tmp_path: Path,
) -> None:
    change, said = REFUSED[what]
    folder = shutil.copytree(adapters[1][0], tmp_path / "lora")
    change(folder)
    with pytest.raises(AfluenteError) as refused:
        prepared(base, [folder], settings)
    assert refused.value.param == "checkpoints[0].uri"
    messages = "\n".join(problem.message for problem in refused.value.as_problems())
    for part in said:
        assert part in messages


def test_an_adapter_is_no_base_and_cannot_do_without_one(
    base: Path, adapters: list[tuple[Path, Path]], settings: Settings
) -> None:
    folder = adapters[0][0]
    for given, experts, param in (
        (folder, [base], "base.uri"),
        (None, [base, folder], "checkpoints[1].uri"),
    ):
        with pytest.raises(AfluenteError, match="full checkpoint") as refused:
            prepared(given, experts, settings)
        assert refused.value.param == param


def test_an_adapter_that_holds_nan_is_refused_by_name(
    base: Path, adapters: list[tuple[Path, Path]], settings: Settings, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapters[1][0], tmp_path / "lora")
    stored(lambda t: t[B].fill_(torch.nan))(folder)
    with pytest.raises(NonFiniteInputError, match=rf"lora.*{QUERY}\.weight"):
        merge(base, [folder], tmp_path / "m", settings)


def test_an_adapter_is_decoded_as_the_merge_of_it_alone(
    service: Service, spec: dict[str, Any], tmp_path: Path
) -> None:
    models = SAMPLES / "checkpoints"
    folder, _ = adapter(models / "base", tmp_path / "speech" / "lora", target_modules=["fc1"], r=64)
    recipe = service.recipe("soup") | {"checkpoints": [folder.as_uri()]}
    merge_id = service.client.post("/merges", json=recipe).json()["id"]
    service.work(JobKind.MERGE, merge_id)
    service.evaluate(merge_id, spec)
    table = service.client.get(f"/merges/{merge_id}/wer").json()
    systems = [table, table["systems"]["lora"], table["systems"]["base"]]
    merge, lora, base = (system["datasets"][0]["wer"] for system in systems)
    assert merge == lora != base
    # Of the adapter all transcripts are the merge's.
    assert service.decoded() == 2 * UTTERANCES


def test_an_adapter_without_its_base_is_not_evaluated(
    adapters: list[tuple[Path, Path]], settings: Settings
) -> None:
    spec = EvaluationSpec.model_validate({"datasets": [{"name": "d", "uri": "file:///m"}]})
    with pytest.raises(InvalidRequestError, match="LoRA adapter"):
        evaluate_checkpoint(adapters[0][0], spec, settings, lambda done, total, what: None)
