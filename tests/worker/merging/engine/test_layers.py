"""λ by layer (LiNeS): between its values in the first and in the last layer of each stack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from app.contract.recipe import parse_request
from app.contract.settings import Settings
from app.planning.plan import depths_of
from app.services.preparation import prepare, source_policy
from tests.tiny_whisper import WEIGHTS, make_base, noisy, variant
from worker.merging.engine.job import Job
from worker.merging.engine.run import run
from worker.merging.sweep import sweep_recipe

Make = Callable[..., Job]
FIRST, LAST = 0.25, 1.25


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base with three encoder layers and one of the decoder, and two experts."""
    base = make_base(tmp_path_factory.mktemp("deep") / "base", encoder_layers=3)
    return [base, *(variant(base, base.parent / f"e{k}", noisy(k)) for k in (1, 2))]


def recipe(folders: list[Path], method: str, **more: Any) -> dict[str, Any]:
    base, *experts = map(str, folders)
    return {"base": base, "checkpoints": experts, "method": method, **more}


def ramp(**more: Any) -> dict[str, Any]:
    return {"scaling_coefficient": FIRST, "scaling_coefficient_last": LAST, **more}


def test_worked_by_hand(make: Make, folders: list[Path]) -> None:
    job = make(recipe(folders, "task_arithmetic", parameters=ramp()))
    outcome = run(job)
    merged = load_file(outcome.folder / WEIGHTS)
    base, *experts = (load_file(folder / WEIGHTS) for folder in folders)
    tensors = json.loads((outcome.folder / "diagnostics.json").read_text())["tensors"]
    for name, scale in {
        "model.encoder.layers.0.fc1.weight": 0.25,
        "model.encoder.layers.1.fc1.bias": 0.75,
        "model.encoder.layers.2.self_attn.q_proj.weight": 1.25,
        "model.encoder.conv1.weight": 0.25,
        "model.encoder.layer_norm.weight": 0.25,
        "model.decoder.layers.0.fc1.weight": 0.25,  # the only layer of its stack is its first
    }.items():
        total = sum(expert[name].double() - base[name].double() for expert in experts)
        expected = base[name].double() + scale * total
        assert (merged[name] - expected).abs().max() < 1e-6
        assert tensors[name]["scaling_coefficient"] == scale


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("ties", {}), ("ties", {"scope": "model"}), ("tsv_m", {}), ("dare", {"density": 0.5})],
)
def test_a_ramp_is_a_rule_for_each_layer_to_the_bit(
    method: str, parameters: dict[str, Any], make: Make, folders: list[Path]
) -> None:
    if parameters.get("scope") == "model":
        # Rules would rank the tensors of each apart. λ alone does not.
        plain = make(
            recipe(folders, method, parameters={**parameters, "scaling_coefficient": LAST})
        )
        flat = load_file(run(plain).folder / WEIGHTS)
        sloped = make(recipe(folders, method, parameters=ramp(**parameters)), attempt="2")
        merged, last = load_file(run(sloped).folder / WEIGHTS), "model.encoder.layers.2."
        assert all(merged[n].equal(flat[n]) for n in flat if n.startswith(last))
        return
    rules = [
        {
            "match": f"model.encoder.layers.{layer}.*",
            "method": method,
            "parameters": {**parameters, "scaling_coefficient": FIRST + layer * (LAST - FIRST) / 2},
        }
        for layer in range(3)
    ]
    by_rule = recipe(
        folders, method, parameters={**parameters, "scaling_coefficient": FIRST}, rules=rules
    )
    one = run(make(by_rule)).folder / WEIGHTS
    other = run(make(recipe(folders, method, parameters=ramp(**parameters)), attempt="2")).folder
    assert one.read_bytes() == (other / WEIGHTS).read_bytes()


def test_equal_ends_are_the_plain_coefficient_to_the_bit(make: Make, folders: list[Path]) -> None:
    flat = make(recipe(folders, "iso_c", parameters={"scaling_coefficient": 0.3}))
    both = {"scaling_coefficient": 0.3, "scaling_coefficient_last": 0.3}
    ends = make(recipe(folders, "iso_c", parameters=both), attempt="2")
    assert (run(flat).folder / WEIGHTS).read_bytes() == (run(ends).folder / WEIGHTS).read_bytes()


def test_ramps_of_a_sweep_share_a_reading_and_keep_their_bytes(
    make: Make, folders: list[Path], settings: Settings, tmp_path: Path
) -> None:
    document = recipe(folders, "task_arithmetic", parameters={"scaling_coefficient": FIRST})
    lasts = [FIRST, 0.75, LAST]
    swept = {"scaling_coefficient_last": lasts}
    sweep_recipe(document, swept, tmp_path / "swept", settings)
    for last in lasts:
        parameters = {"scaling_coefficient": FIRST, "scaling_coefficient_last": last}
        one = run(make(document | {"parameters": parameters}, attempt=str(last))).folder
        point = tmp_path / "swept" / f"scaling_coefficient_last={last}"
        assert (point / WEIGHTS).read_bytes() == (one / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("encoder.layers.0.fc1.weight", 0.0),
        ("encoder.layers.10.fc1.weight", 1.0),
        ("wav2vec2.encoder.layers.5.attention.k_proj.bias", 0.5),
        ("feature_extractor.conv_layers.6.conv.weight", 0.0),
        ("visual.transformer.resblocks.3.mlp.weight", 1.0),
        ("encoder.layer_norm.weight", 0.0),
    ],
)
def test_layers_are_counted_within_their_stack(name: str, depth: float) -> None:
    stacks = ("encoder.layers", "wav2vec2.encoder.layers", "feature_extractor.conv_layers")
    names = [f"{stack}.{layer}.w" for stack in stacks for layer in range(11)]
    names += [f"visual.transformer.resblocks.{layer}.w" for layer in range(4)]
    assert depths_of([*names, name])[name] == depth


def test_the_plan_knows_each_tensors_depth(folders: list[Path], settings: Settings) -> None:
    policy = source_policy(settings, None, any_path=True)
    parsed = parse_request(recipe(folders, "ties", parameters=ramp())).recipe
    depths = {step.name: step.depth for step in prepare(parsed, policy).plan.steps}
    assert depths["model.encoder.layers.1.fc2.weight"] == 0.5
    assert depths["model.decoder.embed_tokens.weight"] == 0.0
