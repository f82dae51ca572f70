"""TSV-M and BoostedTSV-M: the orthogonal sum of dominant singular directions."""

import math

import pytest
import torch

from worker.merging.linalg.orthogonal import NEWTON_SCHULZ

BOTH = ["tsv_m", "boosted_tsv_m"]
SHAPES = [(24, 24), (40, 12), (12, 40), (150, 150)]


def orthogonalize(matrix, how):
    if how != "newton_schulz":
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u @ vh
    x = matrix / matrix.norm()
    for a, b, c in NEWTON_SCHULZ:
        squares = x.T @ x
        x = x @ (a * torch.eye(x.shape[1]) + b * squares + c * squares @ squares)
    return x


def reference(tensors, weights, how, *, beta=1.0, energy="singular_values", rank_fraction=None):
    """The formulas of methods.md in float64, as plainly as they are written there."""
    p = min(tensors.shape[1:])
    fraction = 1 / len(tensors) if rank_fraction is None else rank_fraction
    k = max(1, math.floor(p * fraction + 1e-9))
    us, sigmas, vs = [], [], []
    for d, w in zip(tensors.double(), weights, strict=True):
        u, sigma, vh = torch.linalg.svd(w * d, full_matrices=False)
        measure = sigma**2 if energy == "squared" else sigma
        share = measure.cumsum(0) / measure.sum()
        c = int((share >= beta - 1e-12).nonzero()[0])
        us.append(u[:, :k])
        sigmas.append(sigma.clamp(min=sigma[c])[:k])
        vs.append(vh[:k].T)
    left, right = (orthogonalize(torch.cat(basis, 1), how) for basis in (us, vs))
    return left @ torch.diag(torch.cat(sigmas)) @ right.T


@pytest.fixture(autouse=True)
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("how", ["polar", "newton_schulz"])
@pytest.mark.parametrize("experts", [1, 2, 4, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_tsv_m_agrees_with_float64(merge, random_tensors, shape, experts, how):
    tensors = random_tensors(experts, shape)
    weights = [1.0, -0.5, 2.0, 0.75, 1.0, 1.0, 0.3][:experts]
    expected = reference(tensors, weights, how)
    result = merge("tsv_m", tensors, weights, orthogonalization=how)
    assert torch.dist(result.double(), expected) < 1e-4 * expected.norm()


@pytest.mark.parametrize("energy", ["singular_values", "squared"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_boosted_tsv_m_agrees_with_float64(merge, random_tensors, shape, beta, energy):
    tensors = random_tensors(4, shape)
    weights = [1.0, -0.5, 2.0, 0.75]
    expected = reference(tensors, weights, "newton_schulz", beta=beta, energy=energy)
    result = merge("boosted_tsv_m", tensors, weights, beta=beta, energy=energy)
    assert torch.dist(result.double(), expected) < 1e-4 * expected.norm()


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("rank_fraction", [0.05, 0.25, 0.5, 1.0])
def test_any_rank_fraction_agrees_with_float64(merge, random_tensors, name, rank_fraction):
    tensors = random_tensors(3, (60, 40))
    options = {"rank_fraction": rank_fraction, "orthogonalization": "newton_schulz"}
    beta = {"beta": 0.3} if name == "boosted_tsv_m" else {}
    expected = reference(tensors, [1.0] * 3, "newton_schulz", rank_fraction=rank_fraction, **beta)
    result = merge(name, tensors, **options)
    assert torch.dist(result.double(), expected) < 1e-4 * expected.norm()


def test_a_case_worked_by_hand(merge):
    # Each expert keeps one direction: e1·e1ᵀ of the first, 2·e2·e2ᵀ of the second. They are
    # orthogonal already, so the sum is plain.
    tensors = [[[1.0, 0.0], [0.0, 0.25]], [[0.5, 0.0], [0.0, 2.0]]]
    result = merge("tsv_m", tensors, [3.0, 1.0])
    assert torch.allclose(result, torch.tensor([[3.0, 0.0], [0.0, 2.0]], dtype=torch.float32))


def test_a_boost_worked_by_hand(merge):
    # One expert, energies 0.8 and 1.0: at β = 0.5 both singular values become 4.
    result = merge("boosted_tsv_m", [[[0.0, 4.0], [1.0, 0.0]]], beta=0.5, orthogonalization="polar")
    assert torch.allclose(result, torch.tensor([[0.0, 4.0], [4.0, 0.0]], dtype=torch.float32))
    kept = merge("boosted_tsv_m", [[[0.0, 4.0], [1.0, 0.0]]], beta=0.9, orthogonalization="polar")
    assert torch.allclose(kept, torch.tensor([[0.0, 4.0], [1.0, 0.0]], dtype=torch.float32))


def test_experts_that_do_not_interfere_are_added_up(merge, random_tensors):
    blocks = random_tensors(3, (20, 10))
    tensors = torch.zeros(3, 60, 30, dtype=torch.float32)
    for i, block in enumerate(blocks):
        tensors[i, 20 * i : 20 * i + 20, 10 * i : 10 * i + 10] = block
    result = merge("tsv_m", tensors)
    assert torch.dist(result, tensors.sum(0)) < 1e-5 * result.norm()


@pytest.mark.parametrize("shape", [(40, 24), (200, 64)])
def test_the_merged_spectrum_is_that_of_the_parts(merge, random_tensors, shape):
    tensors = random_tensors(4, shape)
    k = min(shape) // 4
    parts = torch.linalg.svdvals(tensors.double())[:, :k].flatten().sort(descending=True).values
    merged = torch.linalg.svdvals(merge("tsv_m", tensors).double())
    assert torch.allclose(merged[: 4 * k], parts, rtol=1e-4, atol=1e-7)


def test_beta_zero_flattens_the_merged_spectrum(merge, random_tensors):
    tensors = random_tensors(4, (60, 40))
    tensors /= torch.linalg.matrix_norm(tensors, 2)[:, None, None]
    merged = merge("boosted_tsv_m", tensors, beta=0.0, orthogonalization="polar")
    values = torch.linalg.svdvals(merged.double())
    assert torch.allclose(values, torch.ones(40), atol=1e-4)


@pytest.mark.parametrize("how", ["polar", "newton_schulz"])
def test_beta_one_is_tsv_m_to_the_bit(merge, random_tensors, how):
    tensors = random_tensors(4, (60, 40))
    boosted = merge("boosted_tsv_m", tensors, beta=1.0, orthogonalization=how)
    assert torch.equal(boosted, merge("tsv_m", tensors, orthogonalization=how))


@pytest.mark.parametrize("experts", [2, 5])
def test_equal_experts_give_what_one_of_them_keeps(merge, random_tensors, experts):
    (one,) = random_tensors(1, (60, 40))
    k = 40 // experts
    u, sigma, vh = torch.linalg.svd(one.double(), full_matrices=False)
    expected = (u[:, :k] * sigma[:k]) @ vh[:k]
    result = merge("tsv_m", one.expand(experts, 60, 40))
    assert torch.dist(result.double(), expected) < 1e-4 * expected.norm()


def test_one_expert_is_given_back(merge, random_tensors):
    tensors = random_tensors(1, (60, 40))
    assert torch.dist(merge("tsv_m", tensors), tensors[0]) < 1e-5 * tensors.norm()


@pytest.mark.parametrize("name", BOTH)
def test_a_weight_of_zero_leaves_an_expert_out(merge, random_tensors, name):
    tensors = random_tensors(3, (60, 40))
    without = merge(name, tensors[1:], [2.0, 1.0], rank_fraction=0.3)
    result = merge(name, tensors, [0.0, 2.0, 1.0], rank_fraction=0.3)
    assert torch.dist(result, without) < 1e-6 * without.norm()


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("shape", [(300, 64), (64, 300), (144, 144)])
def test_a_shared_component_does_not_magnify_small_changes(merge, name, shape):
    generator = torch.Generator().manual_seed(7)

    def low_rank(rank):
        left = torch.randn(shape[0], rank, generator=generator)
        return left @ torch.randn(rank, shape[1], generator=generator) / shape[0]

    shared, k = low_rank(3), min(shape) // 4
    own = torch.stack([low_rank(k - 3) for _ in range(4)])
    own *= 0.1 * shared.norm() / own.norm(dim=(1, 2), keepdim=True)
    tensors = (shared + own).float()
    noise = torch.randn(tensors.shape, generator=generator)
    changed = tensors + (1e-6 * noise * tensors.norm() / noise.norm()).float()
    # The noise floor is lifted above the change: a direction that enters the basis is a jump.
    floor = {"base": torch.full(shape, 1e-4 * float(shared.norm()), dtype=torch.float32)}
    options = {"orthogonalization": "newton_schulz", "unit_roundoff": 2.0**-11, **floor}
    result = merge(name, tensors, **options)
    moved = torch.dist(merge(name, changed, **options), result) / result.norm()
    assert moved < 1e-4


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_the_stored_weights_is_not_boosted(merge, name, dtype):
    generator = torch.Generator().manual_seed(8)
    base = (0.05 * torch.randn(200, 64, generator=generator)).to(dtype)
    left = torch.randn(2, 200, 4, generator=generator)
    updates = 0.02 * left @ torch.randn(2, 4, 64, generator=generator)
    stored = (base + updates).to(dtype) - base.double()
    options = {"base": base.float(), "unit_roundoff": torch.finfo(dtype).eps / 2}
    exact = merge(name, updates, **options)
    result = merge(name, stored, **options)
    assert torch.dist(result, exact) < 0.05 * exact.norm()
    assert torch.linalg.matrix_rank(result.double(), rtol=1e-4) == 8


def test_diagnostics_tell_the_spectrum(run, random_tensors):
    tensors = random_tensors(2, (60, 40))
    diagnostics = run("boosted_tsv_m", tensors, beta=0.5).diagnostics
    sigma = torch.linalg.svdvals(tensors[0].double())
    expert = diagnostics["experts"][0]
    assert expert["norm"] == pytest.approx(float(tensors[0].norm()), rel=1e-6)
    assert expert["stable_rank"] == pytest.approx(float((sigma**2).sum() / sigma[0] ** 2), rel=1e-5)
    assert expert["kept_rank"] == 20
    assert expert["kept_energy"] == pytest.approx(
        float((sigma[:20] ** 2).sum() / (sigma**2).sum()), rel=1e-6
    )
    reached = int((sigma.cumsum(0) / sigma.sum() < 0.5).sum())
    assert expert["singular_value_at_beta"] == pytest.approx(float(sigma[reached]), rel=1e-5)
    assert expert["noise_directions"] == 0
    assert diagnostics["stable_rank_after"] > diagnostics["stable_rank_before"]
    assert diagnostics["effective_rank_after"] > diagnostics["effective_rank_before"]
