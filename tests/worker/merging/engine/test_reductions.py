"""Methods that reduce tensors before they merge: by stretches, over the model, and resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.contract.catalogue import CATALOGUE, parse_parameters
from app.contract.errors import InvalidRequestError, UndefinedMergeError
from app.contract.recipe import parse_request
from app.contract.tensors import TensorHeader
from app.planning import cost
from app.planning.cost import cost_of
from tests.tiny_whisper import WEIGHTS, noisy, variant
from worker.merging import native
from worker.merging.engine.job import Interrupted, Job, Observer, Outcome
from worker.merging.engine.read import TensorReader
from worker.merging.engine.run import run
from worker.merging.local import describe_files

Make = Callable[..., Job]
REDUCING = {
    "model_stock": {},
    "karcher": {},
    "multi_slerp": {},
    "ties": {},
    "pcb": {},
    "sce": {"select_topk": 0.5},
    "breadcrumbs": {},
    "ties over the model": {"scope": "model"},
    "pcb over the model": {"scope": "model"},
}


def document(name: str, base: Path, experts: list[Path]) -> dict[str, object]:
    return {
        "base": str(base),
        "checkpoints": [str(expert) for expert in experts],
        "method": name.split()[0],
        "parameters": REDUCING[name],
    }


def digests(outcome: Outcome) -> dict[str, str]:
    return {file["name"]: file["sha256"] for file in describe_files(outcome.folder)}


def float_vectors(base: Path, experts: list[Path]) -> dict[str, list[torch.Tensor]]:
    start, loaded = load_file(base / WEIGHTS), [load_file(e / WEIGHTS) for e in experts]
    return {name: [expert[name] - start[name] for expert in loaded] for name in start}


@pytest.mark.parametrize("name", list(REDUCING))
@pytest.mark.usefixtures("small_pieces")
def test_threads_do_not_change_a_byte_where_tensors_are_cut_into_stretches(
    name: str, make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    recipe = document(name, base_folder, expert_folders)
    one = run(make(recipe, attempt="one", threads=1))
    four = run(make(recipe, attempt="four", threads=4))
    assert digests(one) == digests(four)


@pytest.mark.parametrize("name", list(REDUCING))
def test_pieces_change_nothing_but_a_last_bit(
    name: str,
    make: Make,
    base_folder: Path,
    expert_folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = document(name, base_folder, expert_folders)
    whole = load_file(run(make(recipe, attempt="whole")).folder / WEIGHTS)
    monkeypatch.setattr(cost, "BLOCK_ENTRIES", 96)
    monkeypatch.setattr(cost, "STRETCH_ENTRIES", 192)
    pieces = load_file(run(make(recipe, attempt="pieces")).folder / WEIGHTS)
    for tensor in whole:
        torch.testing.assert_close(pieces[tensor], whole[tensor], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["karcher", "ties", "ties over the model"])
@pytest.mark.usefixtures("small_pieces")
def test_an_interrupted_merge_is_taken_up_to_the_same_bytes(
    name: str, make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    recipe = document(name, base_folder, expert_folders)
    undisturbed = run(make(recipe, attempt="undisturbed"))
    observer = Observer()

    def stop_half_way(done: int, total: int) -> None:
        if done >= total // 2:
            observer.stopping.set()

    observer.progress = stop_half_way
    first = make(recipe, attempt="first", threads=1)
    with pytest.raises(Interrupted):
        run(first, observer)
    second = run(make(recipe, attempt="second", previous=(first.folder,)))
    assert second.adopted_tensors > 0
    assert digests(second) == digests(undisturbed)


@pytest.mark.usefixtures("small_pieces")
def test_ties_over_the_model_has_one_threshold_an_expert(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    expert = expert_folders[:1]
    recipe = document("ties over the model", base_folder, expert)
    recipe["parameters"] = {"scope": "model", "density": 0.3}
    outcome = run(make(recipe))
    vectors = float_vectors(base_folder, expert)
    everything = torch.cat([d.abs().flatten() for (d,) in vectors.values()])
    count = math.floor(0.3 * len(everything))
    threshold = float(everything.sort(descending=True).values[count - 1])
    merged, base = load_file(outcome.folder / WEIGHTS), load_file(base_folder / WEIGHTS)
    kept = 0
    for name, (vector,) in vectors.items():
        changed = merged[name] != base[name]
        assert torch.equal(changed, vector.abs() >= threshold), name
        kept += int(changed.sum())
    assert kept == count
    diagnostics = json.loads((outcome.folder / "diagnostics.json").read_text())
    for tensor in diagnostics["tensors"].values():
        assert tensor["thresholds"] == [threshold]
        assert tensor["kept_of_each"] == count


@pytest.mark.parametrize(
    ("name", "scope"), [("karcher", "tensor"), ("ties", "tensor"), ("ties over the model", "model")]
)
def test_the_plan_says_what_is_ranked_over_the_model(
    name: str, scope: str, make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    plan = make(document(name, base_folder, expert_folders)).plan.as_document()
    assert {tensor["scope"] for tensor in plan["tensors"]} == {scope}


class BytesRead:
    """Counts the bytes that merges read from their inputs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        counter = self

        class Sources(native.Sources):
            def __init__(self, places: Any, **more: Any) -> None:
                super().__init__(places, **more)
                self.entry_bytes = sum(dtype.itemsize for _, dtype, _ in places)

            def read(self, start: int, rows: Any, gram: Any = None, **how: Any) -> int:
                counter.count += rows.shape[1] * self.entry_bytes
                return super().read(start, rows, gram, **how)

            def add_inner_products(self, start: int, stop: int, gram: Any) -> int:
                counter.count += (stop - start) * self.entry_bytes
                return super().add_inner_products(start, stop, gram)

            def combine(self, start: int, combination: Any, results: Any, gram: Any = None) -> int:
                counter.count += results.shape[1] * self.entry_bytes
                return super().combine(start, combination, results, gram)

        read_bytes = TensorReader.read_bytes

        def counted(reader: TensorReader, *place: Any, **more: Any) -> torch.Tensor:
            raw = read_bytes(reader, *place, **more)
            counter.count += len(raw)
            return raw

        monkeypatch.setattr(native, "Sources", Sources)
        monkeypatch.setattr(TensorReader, "read_bytes", counted)


VARIATIONS: dict[str, list[dict[str, object]]] = {
    "model_stock": [{}, {"filter_wise": True}],
    "nuslerp": [{}, {"axis": 0}],
    "ties": [{}, {"density": 1.0}, {"scope": "model"}],
    "pcb": [{}, {"scope": "model"}],
    "sce": [{}, {"select_topk": 0.5}],
    "breadcrumbs": [{}, {"density": 1.0, "gamma": 0.0}],
}
EVERY_READING = [
    pytest.param(method, parameters, pieces, id=f"{method} {parameters or ''} {pieces}")
    for method in CATALOGUE
    for parameters in VARIATIONS.get(method, [{}])
    for pieces in ("large", "small")
]


@pytest.mark.parametrize(("method", "parameters", "pieces"), EVERY_READING)
def test_the_bytes_that_the_plan_says_are_those_that_are_read(
    method: str,
    parameters: dict[str, object],
    pieces: str,
    make: Make,
    base_folder: Path,
    expert_folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if pieces == "small":
        monkeypatch.setattr(cost, "BLOCK_ENTRIES", 128)
        monkeypatch.setattr(cost, "STRETCH_ENTRIES", 512)
        monkeypatch.setattr(cost, "_LARGE", 0)
        monkeypatch.setattr(cost, "_TALL", 2)
    traits = CATALOGUE[method]
    recipe: dict[str, object] = {"method": method, "parameters": parameters}
    if traits.base == "required" or (traits.base == "optional" and pieces == "small"):
        recipe["base"] = str(base_folder)
        recipe["rules"] = [{"match": "*k_proj*", "method": "keep_base"}]
    count = (traits.max_experts or 3) - (traits.counts_base and "base" in recipe)
    recipe["checkpoints"] = [str(expert) for expert in expert_folders[:count]]
    job = make(recipe)
    reads = BytesRead(monkeypatch)
    run(job)
    assert reads.count == job.plan.as_document()["totals"]["bytes_read"]


def test_rules_take_tensors_out_of_what_is_ranked_over_the_model(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    recipe = document("ties over the model", base_folder, expert_folders[:1])
    recipe["rules"] = [{"match": "*embed*", "method": "keep_base"}]
    outcome = run(make(recipe))
    diagnostics = json.loads((outcome.folder / "diagnostics.json").read_text())
    (count,) = {t["kept_of_each"] for t in diagnostics["tensors"].values() if "thresholds" in t}
    vectors = float_vectors(base_folder, expert_folders[:1])
    entries = sum(d.numel() for name, (d,) in vectors.items() if "embed" not in name)
    assert count == math.floor(0.2 * entries)


@pytest.mark.usefixtures("small_pieces")
def test_frozen_tensors_count_among_those_ranked_over_the_model(
    make: Make, base_folder: Path, tmp_path: Path
) -> None:
    change = noisy(5)
    expert = variant(
        base_folder, tmp_path / "half", lambda n, t: change(n, t) if "encoder" in n else t
    )
    outcome = run(make(document("ties over the model", base_folder, [expert])))
    diagnostics = json.loads((outcome.folder / "diagnostics.json").read_text())
    entries = sum(t.numel() for t in load_file(base_folder / WEIGHTS).values())
    assert {t["kept_of_each"] for t in diagnostics["tensors"].values()} == {entries // 5}


def test_slerp_takes_the_base_as_the_first_of_its_two_models(
    make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    one, other = str(expert_folders[0]), str(expert_folders[1])
    parameters = {"t": 0.25}
    pair = {"checkpoints": [one, other], "method": "slerp", "parameters": parameters}
    based = {"base": one, "checkpoints": [other], "method": "slerp", "parameters": parameters}
    left = load_file(run(make(pair, attempt="pair")).folder / WEIGHTS)
    right = load_file(run(make(based, attempt="based")).folder / WEIGHTS)
    assert all(torch.equal(left[name], right[name]) for name in left)
    for wrong in ({**pair, "base": one}, {**based, "base": None}):
        with pytest.raises(InvalidRequestError, match="slerp"):
            parse_request(wrong)


@pytest.mark.parametrize("method", ["multi_slerp", "nuslerp"])
def test_with_a_base_task_vectors_are_averaged_and_without_one_the_weights(
    method: str, make: Make, base_folder: Path, expert_folders: list[Path]
) -> None:
    pair = {"checkpoints": [str(e) for e in expert_folders[:2]], "method": method}
    based = load_file(run(make(pair | {"base": str(base_folder)}, attempt="1")).folder / WEIGHTS)
    plain = load_file(run(make(pair, attempt="2")).folder / WEIGHTS)
    base, name = load_file(base_folder / WEIGHTS), "model.encoder.layers.0.fc1.weight"
    vectors = torch.stack(float_vectors(base_folder, expert_folders[:2])[name])
    weights = vectors + base[name]
    for merged, models in ((based[name] - base[name], vectors), (plain[name], weights)):
        directions = torch.nn.functional.normalize(models.flatten(1), dim=1)
        bisector = torch.nn.functional.normalize(directions.sum(0), dim=0)
        along = torch.dot(torch.nn.functional.normalize(merged.flatten(), dim=0), bisector)
        assert float(along) == pytest.approx(1.0, abs=0.01)


def test_experts_that_are_equal_are_copied_by_every_average(
    make: Make, expert_folders: list[Path]
) -> None:
    for method in ("soup", "karcher", "multi_slerp", "slerp", "nuslerp"):
        pair = {"checkpoints": [str(expert_folders[0])] * 2, "method": method}
        folder = run(make(pair, attempt=method)).folder
        merged, expert = load_file(folder / WEIGHTS), load_file(expert_folders[0] / WEIGHTS)
        for name, tensor in expert.items():
            assert torch.equal(merged[name].view(torch.int32), tensor.view(torch.int32)), method


@pytest.mark.usefixtures("small_pieces")
def test_rows_that_are_equal_are_merged_like_the_others_of_their_tensor(
    make: Make, expert_folders: list[Path], tmp_path: Path
) -> None:
    name = "model.decoder.embed_tokens.weight"

    def turned(tensor_name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[:10], -2 * tensor[10:]]) if tensor_name == name else tensor

    other = variant(expert_folders[0], tmp_path / "other", turned)
    pair = [str(expert_folders[0]), str(other)]
    merged = load_file(run(make({"checkpoints": pair, "method": "slerp"})).folder / WEIGHTS)[name]
    first = load_file(expert_folders[0] / WEIGHTS)[name].double()
    second = turned(name, first)
    cosine = (first * second).sum() / (first.norm() * second.norm())
    factor = torch.sin(torch.acos(cosine) / 2) / torch.sin(torch.acos(cosine))
    torch.testing.assert_close(merged, (factor * (first + second)).float(), rtol=1e-5, atol=1e-7)


def test_opposite_checkpoints_end_the_merge_naming_the_tensor(
    make: Make, expert_folders: list[Path], tmp_path: Path
) -> None:
    opposite = variant(expert_folders[0], tmp_path / "opposite", lambda n, t: -t)
    pair = [str(expert_folders[0]), str(opposite)]
    with pytest.raises(UndefinedMergeError, match=r"model\.\S+: checkpoints point in opposite"):
        run(make({"checkpoints": pair, "method": "karcher"}))


def test_warnings_of_many_tensors_are_one_with_their_number(
    make: Make, base_folder: Path, expert_folders: list[Path], tmp_path: Path
) -> None:
    base = load_file(base_folder / WEIGHTS)
    away = variant(expert_folders[0], tmp_path / "away", lambda n, t: base[n] - 0.9 * (t - base[n]))
    mixed = variant(away, tmp_path / "mixed", noisy(9, 0.01))
    recipe = document("model_stock", base_folder, [expert_folders[0], mixed])
    outcome = run(make(recipe))
    (warning,) = outcome.warnings
    assert warning["code"] == "t_outside_unit_interval"
    assert "more tensors)" in warning["message"]


def planned(method: str, rows: int, inputs: int = 5) -> int:
    """Return the memory that the plan says of a tensor."""
    header = TensorHeader("w", "F32", (rows, 384), "f", 0, 4 * 384 * rows)
    _, _, found = cost_of(header, [header] * inputs, parse_parameters(method, {}))
    return found.memory_bytes


def test_the_memory_that_a_reduction_is_planned_with_does_not_grow_with_the_tensor() -> None:
    assert planned("ties", 51_865) == planned("ties", 4 * 51_865) < 2**24


@pytest.mark.parametrize("name", [name for name, kind in CATALOGUE.items() if kind.spectral])
def test_tall_tensors_are_streamed_to_the_same_merge_on_any_number_of_threads(
    name: str,
    make: Make,
    base_folder: Path,
    expert_folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = {
        "base": str(base_folder),
        "checkpoints": [str(expert) for expert in expert_folders],
        "method": name,
    }
    whole = run(make(recipe, attempt="whole"))
    monkeypatch.setattr(cost, "_LARGE", 0)
    monkeypatch.setattr(cost, "_TALL", 2)
    monkeypatch.setattr(cost, "BLOCK_ENTRIES", 128)
    monkeypatch.setattr(cost, "STRETCH_ENTRIES", 384)
    one, four = (run(make(recipe, attempt=f"{n}", threads=n)) for n in (1, 4))
    assert digests(one) == digests(four)
    base = load_file(base_folder / WEIGHTS)
    expected, found = (load_file(outcome.folder / WEIGHTS) for outcome in (whole, one))
    for tensor, start in base.items():
        moved = torch.dist(expected[tensor], start)
        assert torch.dist(found[tensor], expected[tensor]) <= 1e-4 * moved + 1e-7 * start.norm()
    diagnostics = json.loads((one.folder / "diagnostics.json").read_text())
    embedding = diagnostics["tensors"]["model.decoder.embed_tokens.weight"]
    assert len(embedding["experts"]) == len(expert_folders)


def test_the_memory_of_a_streamed_matrix_is_that_of_its_gram_matrices() -> None:
    assert planned("tsv_m", 51_865) == planned("tsv_m", 4 * 51_865) < 2**25


def test_a_sum_is_planned_with_the_memory_of_its_own_matrices_however_many_experts() -> None:
    # The sum of the Gram matrices, and seven squares where all eigenvalues are equal.
    assert planned("iso_c", 2_000_000, 21) == planned("iso_c", 2_000_000, 3) > 8 * 384**2 * 8
