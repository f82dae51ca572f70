"""Models that nothing here decodes merge as Whisper does; whoever asks for their rates is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from app.contract.errors import (
    IncompatibleCheckpointError,
    InvalidCheckpointError,
    InvalidRequestError,
)
from app.contract.evaluation import EvaluationSpec
from app.contract.settings import Settings
from app.sources.architectures import registry
from app.sources.architectures.architecture import Architecture, Lack
from app.sources.checkpoint import ResolvedCheckpoint
from app.storage.leases import JobKind
from tests.tiny_whisper import WEIGHTS, make_base, noisy, variant
from tests.worker.test_evaluation_job import Service, service, spec
from worker.evaluation.local import evaluate_checkpoint
from worker.merging.local import describe_files, merge_recipe
from worker.merging.sweep import sweep_recipe

__all__ = ["service", "spec"]

Tensors = Mapping[str, torch.Tensor]
EMBEDDING = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
ENCODED = "wav2vec2.encoder.pos_conv_embed.conv"


def bert() -> PreTrainedModel:
    return BertForMaskedLM(
        BertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            vocab_size=40,
            max_position_embeddings=12,
        )
    )


def wav2vec2() -> PreTrainedModel:
    return Wav2Vec2ForCTC(
        Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            conv_dim=(8, 8),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            vocab_size=12,
        )
    )


MODELS: Mapping[str, Callable[[], PreTrainedModel]] = {"bert": bert, "wav2vec2": wav2vec2}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A recipe for each model: a base and two fine-tuned copies."""
    found = {}
    for name, make in MODELS.items():
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        make().save_pretrained(folder / "base")
        experts = [variant(folder / "base", folder / f"e{k}", noisy(k)) for k in (1, 2)]
        found[name] = {"base": str(folder / "base"), "checkpoints": [str(e) for e in experts]}
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", device="cpu", threads=2)


def rewrite(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
    """Write a copy of a checkpoint whose tensors `change` changes."""
    shutil.copytree(folder, target)
    tensors = load_file(target / WEIGHTS)
    change(tensors)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    return str(target)


def merged(recipe: dict[str, Any], experts: list[str], output: Path, settings: Settings) -> bytes:
    """Return the weights of a merge of these experts."""
    made = merge_recipe(recipe | {"checkpoints": experts}, output, settings)
    return (made.folder / WEIGHTS).read_bytes()


def naive(method: str, base: Tensors, experts: list[Tensors], scale: float) -> Tensors:
    """Return the merge in float64, by the formulas of docs/methods.md."""

    def change(name: str) -> torch.Tensor:
        vectors = [expert[name].double() - base[name].double() for expert in experts]
        total = torch.stack(vectors).sum(0)
        if method == "task_arithmetic":
            return total
        if total.ndim != 2:
            return total / len(experts)
        u, sigma, vh = torch.linalg.svd(total, full_matrices=False)
        return sigma.mean() * u @ vh

    return {name: base[name].double() + scale * change(name) for name in base}


@pytest.mark.parametrize("method", ["task_arithmetic", "iso_c"])
@pytest.mark.parametrize("name", MODELS)
def test_a_merge_is_that_of_the_formula_and_loads(
    name: str,
    method: str,
    checkpoints: dict[str, dict[str, Any]],
    settings: Settings,
    tmp_path: Path,
) -> None:
    recipe = checkpoints[name] | {"method": method, "parameters": {"scaling_coefficient": 0.7}}
    base, *experts = (load_file(Path(f, WEIGHTS)) for f in (recipe["base"], *recipe["checkpoints"]))
    made = merge_recipe(recipe, tmp_path / "m", settings)
    merged = load_file(made.folder / WEIGHTS)
    expected = naive(method, base, experts, 0.7)
    assert merged.keys() == expected.keys()
    for key, tensor in merged.items():
        assert torch.dist(tensor.double(), expected[key]) <= 1e-5 * expected[key].norm(), key
    model, report = type(MODELS[name]()).from_pretrained(made.folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in merged.items())
    assert made.warnings == ()
    sweep = sweep_recipe(recipe, {"scaling_coefficient": [0.3, 0.7]}, tmp_path / "s", settings)
    assert [
        file["sha256"] for file in describe_files(tmp_path / "s" / "scaling_coefficient=0.7")
    ] == [file["sha256"] for file in made.files]
    assert len(sweep.merges) == 2


def test_shards_and_old_names_of_tensors_make_no_difference(
    checkpoints: dict[str, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    recipe = checkpoints["wav2vec2"] | {"method": "task_arithmetic"}
    one, two = map(Path, recipe["checkpoints"])

    def older(tensors: dict[str, torch.Tensor]) -> None:
        for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
            tensors[f"{ENCODED}.{old}"] = tensors.pop(f"{ENCODED}.parametrizations.weight.{new}")

    model = Wav2Vec2ForCTC.from_pretrained(two)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    others = [rewrite(one, tmp_path / "older", older), str(tmp_path / "sharded")]
    expected = merged(recipe, recipe["checkpoints"], tmp_path / "a", settings)
    assert merged(recipe, others, tmp_path / "b", settings) == expected


def test_a_tied_copy_may_be_stored_if_it_is_equal(
    checkpoints: dict[str, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    recipe = checkpoints["bert"] | {"method": "task_arithmetic"}
    one, two = map(Path, recipe["checkpoints"])

    def tied(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DECODER] = tensors[EMBEDDING].clone()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()

    stored = rewrite(one, tmp_path / "stored", tied)
    expected = merged(recipe, recipe["checkpoints"], tmp_path / "a", settings)
    assert merged(recipe, [stored, str(two)], tmp_path / "b", settings) == expected

    def untied(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DECODER] = tensors[EMBEDDING] + 1

    other = rewrite(one, tmp_path / "untied", untied)
    with pytest.raises(IncompatibleCheckpointError, match=f"{DECODER} is stored and differs"):
        merged(recipe, [other], tmp_path / "c", settings)


def test_integers_are_copied_if_they_are_equal_and_constants_may_be_lacking(
    checkpoints: dict[str, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    recipe = checkpoints["bert"]

    def integers(value: int, *, positions: bool) -> Callable[[dict[str, torch.Tensor]], None]:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors["bert.embeddings.counts"] = torch.tensor(value)
            if positions:
                tensors["bert.embeddings.position_ids"] = torch.arange(12)[None]

        return change

    base = rewrite(Path(recipe["base"]), tmp_path / "base", integers(7, positions=True))
    first = Path(recipe["checkpoints"][0])
    same = rewrite(first, tmp_path / "same", integers(7, positions=False))
    other = rewrite(first, tmp_path / "other", integers(8, positions=False))
    document = {"base": base, "checkpoints": [same], "method": "iso_c"}
    made = load_file(merge_recipe(document, tmp_path / "out", settings).folder / WEIGHTS)
    assert made["bert.embeddings.counts"].item() == 7
    assert "bert.embeddings.position_ids" not in made
    with pytest.raises(IncompatibleCheckpointError, match="counts"):
        merge_recipe(document | {"checkpoints": [other]}, tmp_path / "no", settings)


def test_no_code_of_a_checkpoint_is_kept_or_run(
    checkpoints: dict[str, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    recipe = checkpoints["bert"]
    base = shutil.copytree(recipe["base"], tmp_path / "base")
    mark = tmp_path / "was run"
    code = f"open({str(mark)!r}, 'w')\n"
    evil = {"AutoConfig": "modeling_evil.EvilConfig", "AutoTokenizer": "modeling_evil.Evil"}
    config = json.loads((base / "config.json").read_text()) | {"auto_map": evil}
    (base / "modeling_evil.py").write_text(code)
    (base / "vocab.txt").write_text("\n".join(f"w{number}" for number in range(40)))
    (base / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))
    (base / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "auto_map": evil, "vocab_file": "/etc/a"})
    )
    document = {"checkpoints": [str(base)], "method": "soup"}
    folder = merge_recipe(document, tmp_path / "out", settings).folder
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer_config.json", "vocab.txt", WEIGHTS} <= names
    assert not any(name.endswith(".py") for name in names)
    kept = json.loads((folder / "tokenizer_config.json").read_text())
    assert kept == {"tokenizer_class": "BertTokenizer"}
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert not mark.exists()


class MaskedBert(Architecture):
    """The example of CONTRIBUTING.md."""

    name = "masked_bert"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Return whether the head is the one that fills gaps."""
        return config.get("architectures") == ["BertForMaskedLM"]

    def lacks(self, checkpoint: ResolvedCheckpoint) -> list[Lack]:
        """Return the list of words, if it is not there."""
        if any(file.name == "vocab.txt" for file in checkpoint.files):
            return []
        return [Lack(("vocab.txt", "tokenizer_config.json"), "no vocab.txt")]

    def summary(self, config: Mapping[str, Any]) -> dict[str, str | None]:
        """Return what any model's says, with the class of the tokenizer."""
        return super().summary(config) | {"processor_class": "BertTokenizer"}


def test_a_new_architecture_is_a_class_and_an_entry(
    checkpoints: dict[str, dict[str, Any]],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "KNOWN", (*registry.KNOWN, MaskedBert()))
    recipe = checkpoints["bert"] | {"method": "task_arithmetic"}
    with pytest.raises(InvalidCheckpointError, match=r"it has no vocab\.txt; copy the files"):
        merge_recipe(recipe, tmp_path / "no", settings)
    base = shutil.copytree(recipe["base"], tmp_path / "base")
    (base / "vocab.txt").write_text("\n".join(f"w{number}" for number in range(40)))
    made = merge_recipe(recipe | {"base": str(base)}, tmp_path / "out", settings)
    assert (made.folder / "vocab.txt").read_bytes() == (base / "vocab.txt").read_bytes()
    assert made.sources["architecture"]["processor_class"] == "BertTokenizer"
    assert [warning["code"] for warning in made.warnings] == ["companions_from_base"] * 2


def test_a_mixture_of_architectures_is_refused(
    checkpoints: dict[str, dict[str, Any]], settings: Settings, tmp_path: Path
) -> None:
    whisper = make_base(tmp_path / "whisper")
    for base in (str(whisper), checkpoints["wav2vec2"]["base"]):
        recipe = checkpoints["bert"] | {"base": base, "method": "task_arithmetic"}
        with pytest.raises(IncompatibleCheckpointError, match="of two architectures") as refusal:
            merge_recipe(recipe, tmp_path / "out", settings)
        assert "model_type 'bert' ('BertForMaskedLM')" in refusal.value.message
        assert [problem.param for problem in refusal.value.problems] == [
            "checkpoints[0].uri",
            "checkpoints[1].uri",
        ]


def test_a_merge_through_the_api_says_what_it_is_and_that_it_cannot_be_evaluated(
    checkpoints: dict[str, dict[str, Any]],
    service: Service,
    spec: dict[str, Any],
    tmp_path: Path,
) -> None:
    speech = tmp_path / "speech"
    uris = {
        path: shutil.copytree(path, speech / Path(path).name).as_uri()
        for path in (checkpoints["bert"]["base"], *checkpoints["bert"]["checkpoints"])
    }
    base, *experts = uris.values()
    recipe = {"base": base, "checkpoints": experts, "method": "iso_c"}

    def refused(url: str, body: dict[str, Any], param: str | None) -> None:
        answer = service.client.post(url, json=body)
        document = answer.json()
        assert (answer.status_code, document["code"]) == (422, "invalid_request"), document
        assert "BertForMaskedLM checkpoints can be merged but not evaluated" in document["detail"]
        assert [problem["param"] for problem in document["errors"]] == [param]

    refused("/merges", recipe | {"evaluation": spec}, "evaluation")
    refused("/merges?dry_run=true", recipe | {"evaluation": spec}, "evaluation")
    merge_id = service.client.post("/merges", json=recipe).json()["id"]
    service.work(JobKind.MERGE, merge_id)
    found = service.client.get(f"/merges/{merge_id}").json()
    assert found["status"] == "succeeded", found
    assert found["architecture"] == {
        "model_type": "bert",
        "model_class": "BertForMaskedLM",
        "processor_class": None,
        "task": None,
    }
    gate = {"max_wer": {"telephone": 0.5}}
    refused(f"/merges/{merge_id}/evaluations", spec | {"gate": gate}, None)
    speaking = service.merge("soup")
    compared = spec | {"compare_with": [f"merge://{merge_id}"]}
    refused(f"/merges/{speaking}/evaluations", compared, "compare_with[0]")
    card = service.client.get(f"/merges/{merge_id}/model-card").text
    assert "BertForMaskedLM.from_pretrained" in card
    assert "hisper" not in card
    assert "speech" not in card.partition("\n---\n")[0]


def test_the_command_line_says_so_too(
    checkpoints: dict[str, dict[str, Any]], settings: Settings, spec: dict[str, Any]
) -> None:
    asked = EvaluationSpec.model_validate(spec)
    base = Path(checkpoints["bert"]["base"])
    with pytest.raises(InvalidRequestError, match="no decoder for them, only for whisper"):
        evaluate_checkpoint(base, asked, settings, lambda done, total, unit: None)
