"""The spectra of adapters come from their factors: as those of the full matrices, and cheaper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.contract.settings import Settings
from app.planning import cost
from tests.tiny_whisper import WEIGHTS, make_base, noisy, variant
from tests.worker.test_adapters import adapter, prepared
from worker.merging import reductions
from worker.merging.linalg.ops import eigen_of, eigen_of_product, eigh, gram
from worker.merging.local import merge_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"d_model": 64, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    return make_base(tmp_path_factory.mktemp("models") / "base", **sizes)


@pytest.fixture(scope="module")
def adapters(base: Path) -> list[Path]:
    hows: list[dict[str, Any]] = [{"r": 4}, {"r": 7, "use_rslora": True}, {"use_dora": True}]
    return [
        adapter(base, base.parent / f"lora{n}", seed=n, target_modules=["q_proj", "fc1"], **how)[0]
        for n, how in enumerate(hows)
    ]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", device="cpu", threads=2)


def merged(
    base: Path, experts: list[Path], folder: Path, settings: Settings, **fields: Any
) -> dict[str, torch.Tensor]:
    listed = [
        {"uri": str(one), "weight": weight}
        for one, weight in zip(experts, (1.0, -0.5, 0.25), strict=False)
    ]
    document = {"base": str(base), "checkpoints": listed, **fields}
    return load_file(merge_recipe(document, folder, settings).folder / WEIGHTS)


def by_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cost, reductions):
        monkeypatch.setattr(module, "THIN", 10**9)


@pytest.mark.parametrize(
    ("method", "mixed"), [("boosted_tsv_m", False), ("iso_c", False), ("tsv_m", True)]
)
def test_factors_give_the_merge_that_matrices_give(
    method: str,
    mixed: bool,
    base: Path,
    adapters: list[Path],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An adapter with magnitudes is no product, nor is a full checkpoint.
    experts = [adapters[0], adapters[1]]
    if mixed:
        experts = [adapters[2], adapters[1], variant(base, tmp_path / "full", noisy(3))]
    found = merged(base, experts, tmp_path / "m", settings, method=method)
    # What is stored for later merges is loaded as it was.
    kept = settings.model_copy(update={"reductions_bytes": 10**8})
    for name in ("n", "o"):
        again = merged(base, experts, tmp_path / name, kept, method=method)
        assert all(torch.equal(again[key], tensor) for key, tensor in found.items())
    by_matrices(monkeypatch)
    wanted = merged(base, experts, tmp_path / "p", settings, method=method)
    before = load_file(base / WEIGHTS)
    for name, tensor in wanted.items():
        change = tensor - before[name]
        assert (found[name] - tensor).norm() <= 2e-5 * (change.norm() + 1e-3), name


def test_the_plan_costs_less(
    base: Path, adapters: list[Path], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flops() -> int:
        plan = prepared(base, adapters[:2], settings, method="tsv_m").plan
        return sum(step.cost.flops for step in plan.steps)

    factored = flops()
    by_matrices(monkeypatch)
    assert factored < flops()


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (9, 9)])
def test_the_eigenproblem_of_a_product_is_that_of_the_matrix(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(shape[0], 3, dtype=torch.float64, generator=generator)
    right = torch.randn(3, shape[1], dtype=torch.float64, generator=generator)
    found, (wanted,) = eigen_of_product(left, right), eigh([gram((left @ right).contiguous())])
    assert torch.allclose(found.values, wanted.values, atol=1e-10)
    assert torch.allclose(found.vectors(3).abs(), wanted.vectors(3).abs(), atol=1e-8)
    weights = torch.tensor([3.0, 2.0], dtype=torch.float64)
    assert torch.allclose(found.combined(weights), wanted.combined(weights), atol=1e-8)
    same = eigen_of(found.arrays())
    assert torch.equal(same.values, found.values)
    assert torch.equal(same.vectors(2), found.vectors(2))
    with pytest.raises(ValueError, match="rank 3"):
        found.vectors(4)
    nothing = eigen_of_product(torch.zeros_like(left), right)
    assert not nothing.values.any()
