"""Small changes of the inputs stay small, sums of noise stay out, and large tensors stay finite."""

import pytest
import torch

from app.contract.catalogue import CATALOGUE
from benchmarks.stability import movements

SPECTRAL = [name for name, method in CATALOGUE.items() if method.spectral]
SHAPES = [(144, 144), (300, 80), (80, 300)]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.mark.parametrize("part", [1, 8], ids=["full-rank", "low-rank"])
def test_all_variants_side_by_side_where_experts_share_a_component_ten_times_larger(shape, part):
    table = {found[:2]: found.relative for found in movements(shape, min(shape) // part)}
    for (method, how), moved in table.items():
        if how == "newton_schulz":
            assert moved <= 1e-4, (method, table)
        if how == "polar":
            assert moved <= 1.1 * table[method, "svd"] + 1e-6, (method, table)
    assert table["iso_c", "-"] <= 1e-4


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_rank_experts_stored_in_any_dtype_stay_low_rank(merge, name, dtype):
    generator = torch.Generator().manual_seed(3)
    base = (0.05 * torch.randn(300, 160, generator=generator)).to(dtype)
    update = torch.randn(3, 300, 4, generator=generator)
    update = 0.02 * update @ torch.randn(3, 4, 160, generator=generator)
    stored = (base.float() + update).to(dtype).float() - base.float()
    options = {"base": base.float(), "unit_roundoff": torch.finfo(dtype).eps / 2}
    result = merge(name, stored, **options)
    assert torch.linalg.matrix_rank(result.double(), rtol=1e-4) == 12
    exact = merge(name, update, **options)
    assert torch.dist(result, exact) < 0.05 * exact.norm()


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("experts", [1, 20])
def test_half_precision_experts_of_full_rank_are_finite(merge, name, experts):
    base = (0.05 * torch.randn(160, 140)).to(torch.bfloat16)
    stored = (base + 0.01 * torch.randn(experts, 160, 140)).to(torch.bfloat16)
    tensors = stored.float() - base.float()
    result = merge(name, tensors, base=base.float(), unit_roundoff=2.0**-8)
    assert result.isfinite().all()
    assert result.any()


@pytest.mark.parametrize("name", SPECTRAL)
def test_an_embedding_of_51866_rows_is_merged(merge, name):
    generator = torch.Generator().manual_seed(4)
    update = torch.randn(2, 51866, 16, generator=generator)
    tensors = 1e-3 * torch.randn(2, 51866, 40, generator=generator)
    tensors += 0.01 * update @ torch.randn(2, 16, 40, generator=generator)
    result = merge(name, tensors, base=torch.full((51866, 40), 0.05))
    assert result.shape == (51866, 40)
    assert result.isfinite().all()
    assert result.is_contiguous()
    assert torch.linalg.matrix_rank(result.double().T @ result.double()) >= 16
