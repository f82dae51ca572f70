"""Checkpoints that were saved inside a wrapper merge as those that were not, with a warning."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, WhisperForConditionalGeneration

from app.contract.errors import AfluenteError
from app.contract.settings import Settings
from app.sources.key_prefixes import common_prefix
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from tests.tiny_whisper import WEIGHTS, make_base, noisy, variant
from worker.merging.local import LocalMerge, merge_recipe
from worker.systems import Checkpoints, System


class Holder(nn.Module):
    """A class that holds the model, as a training framework's module does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "compiled": (compiled, "_orig_mod."),
    "data parallel": (nn.DataParallel, "module."),
    "held": (Holder, "model."),
    "both": (lambda model: nn.DataParallel(Holder(model)), "module.model."),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", device="cpu", threads=2)


def wrapped(source: Path, target: Path, wrap: Callable[[nn.Module], Any], kind: Any) -> Path:
    """Save a checkpoint's model inside a wrapper."""
    shutil.copytree(source, target)
    state = wrap(kind.from_pretrained(source)).state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, target / WEIGHTS)
    return target


def merge(base: Path, expert: Path, output: Path, settings: Settings) -> LocalMerge:
    document = {"base": str(base), "checkpoints": [str(expert)], "method": "task_arithmetic"}
    return merge_recipe(document, output, settings)


@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrapped_checkpoint_merges_as_the_plain_one(
    how: str, base: Path, settings: Settings, tmp_path: Path
) -> None:
    wrap, prefix = WRAPPERS[how]
    plain = variant(base, tmp_path / "plain", noisy(1))
    inside = wrapped(plain, tmp_path / "wrapped", wrap, WhisperForConditionalGeneration)
    expected = merge(base, plain, tmp_path / "m", settings)
    made = merge(base, inside, tmp_path / "n", settings)
    assert (made.folder / WEIGHTS).read_bytes() == (expected.folder / WEIGHTS).read_bytes()
    (warning,) = [one for one in made.warnings if one["code"] == "key_prefix"]
    assert f'wrapped are named with the prefix "{prefix}"' in warning["message"]
    # As the base too: a known architecture says its names.
    based = wrapped(base, tmp_path / "base", wrap, WhisperForConditionalGeneration)
    turned = merge(based, plain, tmp_path / "o", settings)
    assert (turned.folder / WEIGHTS).read_bytes() == (expected.folder / WEIGHTS).read_bytes()


def test_names_of_any_model_are_compared_with_the_base_s(
    settings: Settings, tmp_path: Path
) -> None:
    config = GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=6)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    inside = wrapped(tmp_path / "base", tmp_path / "expert", nn.DataParallel, GPT2LMHeadModel)
    made = merge(tmp_path / "base", inside, tmp_path / "m", settings)
    found, expected = load_file(made.folder / WEIGHTS), load_file(tmp_path / "base" / WEIGHTS)
    assert found.keys() == expected.keys()
    assert 'the prefix "module."' in made.warnings[0]["message"]


@pytest.mark.parametrize(
    ("wrap", "prefix"), [(Holder, "model."), (nn.DataParallel, "module.")], ids=["held", "parallel"]
)
def test_an_adapter_of_a_wrapped_model_is_that_of_the_model(
    wrap: Callable[[nn.Module], Any], prefix: str, base: Path, settings: Settings, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration.from_pretrained(base)
    tuned = get_peft_model(wrap(model), LoraConfig(target_modules=["q_proj", "fc1"], r=2))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    tuned.save_pretrained(tmp_path / "wrapped")
    shutil.copytree(tmp_path / "wrapped", tmp_path / "plain")
    stored = load_file(tmp_path / "wrapped/adapter_model.safetensors")
    assert all(name.startswith(f"base_model.model.{prefix}model.") for name in stored)
    names = {name: name.replace(prefix, "", 1) for name in stored}
    if prefix == "model.":
        names = {name: name.replace("model.model.model.", "model.model.", 1) for name in stored}
    plain = {names[name]: tensor for name, tensor in stored.items()}
    save_file(plain, tmp_path / "plain/adapter_model.safetensors")
    # The whole adapted model may be wrapped as well.
    shutil.copytree(tmp_path / "plain", tmp_path / "outside")
    outside = {f"module.{name}": tensor for name, tensor in plain.items()}
    save_file(outside, tmp_path / "outside/adapter_model.safetensors")
    made = [
        merge(base, tmp_path / name, tmp_path / f"m-{name}", settings)
        for name in ("plain", "wrapped", "outside")
    ]
    assert len({(one.folder / WEIGHTS).read_bytes() for one in made}) == 1
    said = [[w["message"] for w in one.warnings if w["code"] == "key_prefix"] for one in made]
    assert said[0] == []
    assert f'"{prefix}"' in said[1][0]
    assert '"module."' in said[2][0]


def test_a_wrapped_checkpoint_that_lacks_a_tensor_is_refused_for_that(
    base: Path, settings: Settings, tmp_path: Path
) -> None:
    inside = wrapped(base, tmp_path / "w", compiled, WhisperForConditionalGeneration)
    tensors = load_file(inside / WEIGHTS)
    del tensors["_orig_mod.model.encoder.conv1.bias"]
    save_file(tensors, inside / WEIGHTS)
    with pytest.raises(AfluenteError, match=r"1 tensor is missing .*: model\.encoder\.conv1\.bias"):
        merge(base, inside, tmp_path / "m", settings)


def test_a_wrapped_checkpoint_is_decoded_without_the_prefix(
    base: Path, settings: Settings, tmp_path: Path
) -> None:
    plain = variant(base, tmp_path / "plain", lambda name, tensor: tensor.half())
    inside = wrapped(plain, tmp_path / "w", nn.DataParallel, WhisperForConditionalGeneration)
    halves = {name: tensor.half() for name, tensor in load_file(inside / WEIGHTS).items()}
    save_file(halves, inside / WEIGHTS)
    policy = SourcePolicy(cache_dir=tmp_path / "cache", file_roots=None)
    system = System("w", inside.as_uri(), None, base.as_uri())
    checkpoints = Checkpoints(settings, policy)
    with checkpoints.of(system, lambda: False).opened() as folder:
        found, expected = load_file(folder / WEIGHTS), load_file(plain / WEIGHTS)
        for name, tensor in found.items():
            assert tensor.dtype == torch.float16
            assert torch.equal(tensor, expected[name]), name
    assert resolve(inside.as_uri(), policy).prefix == "module."


def test_the_names_of_any_model_s_reference_tell_its_prefix(
    settings: Settings, tmp_path: Path
) -> None:
    config = GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=6)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    inside = wrapped(tmp_path / "base", tmp_path / "w", nn.DataParallel, GPT2LMHeadModel)
    policy = SourcePolicy(cache_dir=tmp_path / "cache", file_roots=None)
    system = System("w", inside.as_uri(), None, (tmp_path / "base").as_uri())
    checkpoints = Checkpoints(settings, policy)
    with checkpoints.of(system, lambda: False).opened() as folder:
        assert load_file(folder / WEIGHTS).keys() == load_file(tmp_path / "base" / WEIGHTS).keys()


def test_only_what_makes_names_known_is_a_prefix() -> None:
    known = {"a.x", "a.y", "b.x"}
    assert common_prefix(["m.a.x", "m.a.y"], known) == "m."
    assert common_prefix(["a.x", "a.y"], known) == ""
    assert common_prefix(["m.a.x", "a.y"], known) == ""
    assert common_prefix(["m.z"], known) == ""
    assert common_prefix([], known) == ""
