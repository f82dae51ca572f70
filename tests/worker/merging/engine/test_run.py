"""What the engine promises whatever the method: exactness, interruption, memory, refusal."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

from app.contract.catalogue import CATALOGUE
from app.contract.errors import (
    IncompatibleCheckpointError,
    InvalidRequestError,
    NonFiniteInputError,
    OutOfMemoryError,
    OutputOverflowError,
    SourceChangedError,
)
from app.contract.recipe import parse_request
from tests.tiny_whisper import WEIGHTS, noisy, variant
from worker.merging.engine.job import Interrupted, Job, Observer
from worker.merging.engine.journal import read_journal
from worker.merging.engine.run import run
from worker.merging.local import describe_files
from worker.merging.native import ReadError, Sources

Make = Callable[..., Job]
ORIGIN = {"torch": torch.__version__, "device": "cpu"}


def digests(folder: Path) -> dict[str, str]:
    return {file["name"]: file["sha256"] for file in describe_files(folder)}


def recipe(method: str, base: Path, experts: list[Path], **parameters: object) -> dict[str, object]:
    most = CATALOGUE[method].max_experts
    document: dict[str, object] = {
        "checkpoints": [str(e) for e in experts[:most]],
        "method": method,
        "parameters": parameters,
    }
    return document | ({"base": str(base)} if CATALOGUE[method].base == "required" else {})


def bits(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t.flatten().view(torch.uint8) for name, t in load_file(folder / WEIGHTS).items()}


def same_bits(one: Path, other: Path) -> bool:
    left, right = bits(one), bits(other)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_soup_of_the_same_checkpoint_twice_is_that_checkpoint_to_the_bit(
    make: Make, expert_folders: list[Path]
) -> None:
    expert = expert_folders[0]
    outcome = run(make({"checkpoints": [str(expert), str(expert)], "method": "soup"}))
    assert same_bits(outcome.folder, expert)


def test_a_scaling_coefficient_of_zero_gives_the_base_to_the_bit(
    make: Make, base_folder: Path, expert_folders: list[Path], tmp_path: Path
) -> None:
    # Negative zeros too: they are not equal to zero in their bits.
    base = variant(base_folder, tmp_path / "base", lambda n, t: torch.where(t < 0, -0.0, t))
    for method in CATALOGUE:
        if "scaling_coefficient" in CATALOGUE[method].model_fields:
            document = recipe(method, base, expert_folders, scaling_coefficient=0.0)
            assert same_bits(run(make(document, attempt=method)).folder, base), method


def test_task_arithmetic_of_one_expert_with_coefficient_one_is_that_expert(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    outcome = run(make(recipe("task_arithmetic", base_folder, expert_folders[:1])))
    merged, expert = load_file(outcome.folder / WEIGHTS), load_file(expert_folders[0] / WEIGHTS)
    for name, tensor in expert.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", list(CATALOGUE))
def test_experts_equal_to_the_base_give_the_base_to_the_bit(
    method: str, make: Make, base_folder: Path
) -> None:
    copies = [base_folder] * max(2, CATALOGUE[method].min_experts)
    assert same_bits(run(make(recipe(method, base_folder, copies))).folder, base_folder)


@pytest.mark.parametrize("method", list(CATALOGUE))
def test_the_artifact_does_not_depend_on_the_number_of_threads(
    method: str, make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    document = recipe(method, base_folder, expert_folders)
    one = run(make(document, attempt="one", threads=1))
    two = run(make(document, attempt="two", threads=2))
    assert digests(one.folder) == digests(two.folder)


def test_a_spectral_method_averages_tensors_that_are_not_matrices(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    job = make(recipe("tsv_m", base_folder, expert_folders, scaling_coefficient=0.5))
    merged = load_file(run(job).folder / WEIGHTS)
    base = load_file(base_folder / WEIGHTS)
    experts = [load_file(folder / WEIGHTS) for folder in expert_folders]
    for name in ("model.encoder.conv1.weight", "model.encoder.layer_norm.bias"):
        mean = sum(expert[name].double() - base[name].double() for expert in experts) / 3
        expected = (base[name].double() + 0.5 * mean).float()
        torch.testing.assert_close(merged[name], expected, rtol=1e-6, atol=1e-7)


def test_what_an_interrupted_attempt_finished_is_taken_over_and_not_merged_again(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    document = recipe("task_arithmetic", base_folder, expert_folders)
    undisturbed = run(make(document, attempt="undisturbed"))
    observer = Observer()

    def stop_half_way(done: int, total: int) -> None:
        if done >= total // 2:
            observer.stopping.set()

    observer.progress = stop_half_way
    first = make(document, attempt="first", threads=1)
    with pytest.raises(Interrupted):
        run(first, observer)
    finished = list(read_journal(first.folder / "journal.jsonl", ORIGIN))
    assert finished
    second = run(make(document, attempt="second", previous=(first.folder,)))
    assert second.adopted_tensors == len(finished)
    assert digests(second.folder) == digests(undisturbed.folder)


def test_bytes_that_the_journal_does_not_vouch_for_are_merged_again(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    document = recipe("task_arithmetic", base_folder, expert_folders)
    first = make(document, attempt="first")
    undisturbed = digests(run(first).folder)
    # Pages lost in a power cut, and a last line cut short.
    weights = first.folder / "tensors" / WEIGHTS
    damaged = bytearray(weights.read_bytes())
    damaged[-40:] = bytes(40)
    weights.write_bytes(damaged)
    journal = first.folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], *lines[2:], lines[1][:-9]]))
    second = run(make(document, attempt="second", previous=(first.folder,)))
    assert second.adopted_tensors == len(lines) - 3
    assert digests(second.folder) == undisturbed


def test_what_another_torch_or_device_computed_is_not_taken_over(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    document = recipe("task_arithmetic", base_folder, expert_folders)
    first = make(document, attempt="first")
    run(first)
    journal = first.folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"device":"cpu"', '"device":"cuda"', 1))
    second = run(make(document, attempt="second", previous=(first.folder,)))
    assert second.adopted_tensors == 0


def test_memory_that_cannot_be_had_is_told_as_such(
    make: Make, expert_folders: list[Path], base_folder: Path
) -> None:
    job = make(recipe("soup", base_folder, expert_folders))

    def ask_for_too_much(*_: object) -> None:
        torch.empty(2**50)

    observer = Observer(progress=ask_for_too_much)
    with pytest.raises(OutOfMemoryError, match="largest tensor"):
        run(job, observer)


def test_memory_that_runs_out_while_files_are_read_is_no_fault_of_theirs(
    make: Make, expert_folders: list[Path], base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(*_: object) -> int:
        raise ReadError(0, errno.ENOMEM)

    monkeypatch.setattr(Sources, "combine", without_memory)
    with pytest.raises(OutOfMemoryError, match="largest tensor"):
        run(make(recipe("soup", base_folder, expert_folders)))


def test_a_source_that_vanished_is_named_and_not_the_artifact_store(
    make: Make, expert_folders: list[Path], base_folder: Path, tmp_path: Path
) -> None:
    victim = variant(expert_folders[0], tmp_path / "victim", lambda n, t: t)
    job = make(recipe("soup", base_folder, [expert_folders[1], victim]))
    shutil.rmtree(victim)
    with pytest.raises(SourceChangedError, match="victim"):
        run(job)


def test_an_attempt_writes_nothing_into_an_earlier_one(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    document = recipe("soup", base_folder, expert_folders)
    first = make(document, attempt="first")
    run(first)
    before = {p: p.stat().st_mtime_ns for p in sorted(first.folder.rglob("*"))}
    run(make(document, attempt="second", previous=(first.folder,)))
    assert {p: p.stat().st_mtime_ns for p in sorted(first.folder.rglob("*"))} == before


@pytest.mark.parametrize(
    ("method", "value"),
    [
        *((method, float("nan")) for method in CATALOGUE),
        *((method, float(f"{sign}inf")) for method in ("soup", "ties", "tsv_m") for sign in "+-"),
    ],
)
def test_nan_and_infinity_are_refused_naming_checkpoint_and_tensor(
    method: str,
    value: float,
    make: Make,
    base_folder: Path,
    expert_folders: list[Path],
    tmp_path: Path,
) -> None:
    name = "model.decoder.layers.0.fc1.weight"

    def poison(tensor_name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor_name == name:
            tensor[3, 5] = value
        return tensor

    bad = variant(expert_folders[0], tmp_path / "poisoned", poison)
    with pytest.raises(NonFiniteInputError, match=rf"poisoned.*{name}"):
        run(make(recipe(method, base_folder, [expert_folders[1], bad])))


def test_a_sum_of_task_vectors_that_does_not_fit_float32_is_refused_naming_the_tensor(
    make: Make, base_folder: Path, tmp_path: Path
) -> None:
    name = "model.decoder.layers.0.fc1.weight"
    large = variant(base_folder, tmp_path / "large", lambda n, t: t + 3e38 * (n == name))
    with pytest.raises(OutputOverflowError, match=rf"{name}: the weighted sum .* smaller weights"):
        run(make(recipe("iso_c", base_folder, [large, large])))


def test_a_value_that_does_not_fit_the_output_dtype_is_refused_naming_the_tensor(
    make: Make, base_folder: Path, tmp_path: Path
) -> None:
    large = variant(
        base_folder, tmp_path / "large", lambda n, t: t + 7e4 * (n.endswith("fc1.bias"))
    )
    document = {"checkpoints": [str(large)], "method": "soup", "output": {"dtype": "float16"}}
    with pytest.raises(OutputOverflowError, match=r"fc1\.bias"):
        run(make(document))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_output_dtype_is_reached_by_one_rounding(
    dtype: str, make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    document = recipe("soup", base_folder, expert_folders) | {"output": {"dtype": dtype}}
    merged = load_file(run(make(document)).folder / WEIGHTS)
    experts = [load_file(folder / WEIGHTS) for folder in expert_folders]
    for name, tensor in merged.items():
        assert tensor.dtype is getattr(torch, dtype)
        mean = (sum(expert[name].double() for expert in experts) / 3).float()
        ulp = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(tensor.float(), mean, rtol=ulp, atol=1e-7)


def test_half_precision_inputs_merge_in_float32(
    make: Make, base_folder: Path, tmp_path: Path
) -> None:
    halves = [
        variant(base_folder, tmp_path / f"h{k}", lambda n, t, k=k: noisy(k)(n, t).half())
        for k in (1, 2)
    ]
    merged = load_file(run(make(recipe("soup", base_folder, halves))).folder / WEIGHTS)
    loaded = [load_file(folder / WEIGHTS) for folder in halves]
    for name, tensor in merged.items():
        expected = ((loaded[0][name].float() + loaded[1][name].float()) / 2).half()
        assert torch.equal(tensor, expected), name


def test_a_tied_copy_that_equals_the_embedding_is_dropped_and_another_is_refused(
    make: Make, base_folder: Path, expert_folders: list[Path], tmp_path: Path
) -> None:
    def with_copy(folder: Path, shift: float) -> Path:
        tensors = load_file(expert_folders[0] / WEIGHTS)
        tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"] + shift
        shutil.copytree(expert_folders[0], folder)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        return folder

    same, other = with_copy(tmp_path / "same", 0.0), with_copy(tmp_path / "other", 1.0)
    merged = load_file(run(make(recipe("soup", base_folder, [same, same]))).folder / WEIGHTS)
    assert "proj_out.weight" not in merged
    with pytest.raises(IncompatibleCheckpointError, match=r"other.*proj_out\.weight"):
        run(make(recipe("soup", base_folder, [same, other]), attempt="2"))


def test_rules_choose_another_method_or_keep_the_base(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    document = recipe("task_arithmetic", base_folder, expert_folders) | {
        "rules": [
            {"match": "model.encoder.conv*", "method": "keep_base"},
            {
                "match": "*fc1*",
                "method": "task_arithmetic",
                "parameters": {"scaling_coefficient": 0.5},
            },
        ]
    }
    merged = load_file(run(make(document)).folder / WEIGHTS)
    base = load_file(base_folder / WEIGHTS)
    experts = [load_file(folder / WEIGHTS) for folder in expert_folders]
    for name, tensor in merged.items():
        scale = 0.0 if ".conv" in name else 0.5 if "fc1" in name else 1.0
        total = sum(expert[name] - base[name] for expert in experts)
        torch.testing.assert_close(tensor, base[name] + scale * total, rtol=1e-5, atol=1e-6)


def test_rules_may_give_tensors_weights_of_their_own(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    weights = [2.0, 0.0, -0.5]
    rule = {"match": "*decoder*", "method": "task_arithmetic", "weights": weights}
    document = recipe("task_arithmetic", base_folder, expert_folders) | {"rules": [rule]}
    folder = run(make(document)).folder
    assert json.loads((folder / "recipe.json").read_text())["rules"][0]["weights"] == weights
    merged, base = load_file(folder / WEIGHTS), load_file(base_folder / WEIGHTS)
    experts = [load_file(expert / WEIGHTS) for expert in expert_folders]
    for name, tensor in merged.items():
        used = weights if "decoder" in name else [1.0] * 3
        total = sum(w * (e[name] - base[name]) for w, e in zip(used, experts, strict=True))
        torch.testing.assert_close(tensor, base[name] + total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"method": "soup", "weights": [1.0]}, "1 weights for 3 checkpoints"),
        ({"method": "soup", "weights": [1.0, -1.0, 0.0]}, "add up to 0"),
        ({"method": "pcb", "weights": [1.0, 1.0, 1.0]}, "pcb has no weights"),
        ({"method": "keep_base", "weights": [1.0, 1.0, 1.0]}, "keep_base takes no weights"),
    ],
)
def test_weights_of_a_rule_that_cannot_be_used_are_refused(
    rule: dict[str, object], message: str, base_folder: Path, expert_folders: list[Path]
) -> None:
    document = recipe("task_arithmetic", base_folder, expert_folders)
    with pytest.raises(InvalidRequestError, match=message) as caught:
        parse_request(document | {"rules": [{"match": "*", **rule}]})
    assert {problem.param for problem in caught.value.problems} == {"rules[0].weights"}


def test_shards_and_index_hold_the_same_as_one_file(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    document = recipe("soup", base_folder, expert_folders)
    whole = load_file(run(make(document, attempt="whole")).folder / WEIGHTS)
    folder = run(make(document | {"output": {"max_shard_size": "8KB"}}, attempt="shards")).folder
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    joined = {name: t for shard in shards for name, t in load_file(shard).items()}
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)
    again = run(make({"checkpoints": [str(folder)], "method": "soup"}, attempt="from-shards"))
    assert same_bits(again.folder, folder.parents[1] / "whole" / "tensors")


@pytest.mark.parametrize("method", ["soup", "ties", "tsv_m"])
def test_transformers_loads_the_artifact_without_missing_or_unexpected_keys(
    method: str, make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    folder = run(make(recipe(method, base_folder, expert_folders))).folder
    model, info = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype is torch.float32
    assert (folder / "processor_config.json").is_file()


def test_a_source_cut_short_while_it_is_read_is_named(
    make: Make, base_folder: Path, expert_folders: list[Path], tmp_path: Path
) -> None:
    victim = variant(expert_folders[0], tmp_path / "victim", lambda n, t: t)
    job = make(recipe("soup", base_folder, [expert_folders[1], victim]))
    with (victim / WEIGHTS).open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(SourceChangedError, match="victim"):
        run(job)


def test_a_source_rewritten_while_it_is_read_is_noticed_before_anything_is_published(
    make: Make, base_folder: Path, expert_folders: list[Path], tmp_path: Path
) -> None:
    victim = variant(expert_folders[0], tmp_path / "victim", lambda n, t: t)
    job = make(recipe("soup", base_folder, [expert_folders[1], victim]))
    (victim / WEIGHTS).write_bytes((expert_folders[2] / WEIGHTS).read_bytes())
    with pytest.raises(SourceChangedError, match=r"victim.*model\.safetensors"):
        run(job)


def test_a_merge_leaves_torch_its_threads(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run(make(recipe("task_arithmetic", base_folder, expert_folders)))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
