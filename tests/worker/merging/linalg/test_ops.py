"""Products and eigenproblems are those of float64, however they are asked for."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.merging import native
from worker.merging.linalg.ops import (
    apply,
    eigh,
    gram,
    inner_products,
    largest_eigenvalue,
    mirror,
    product,
    symmetric_product,
    weighted_sum,
)

DOUBLE = torch.float64


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def squares(n, rank=None, seed=0):
    return mirror(gram(randn(rank or 2 * n, n, seed=seed)))


def turned(values, seed=3):
    """A symmetric matrix of these eigenvalues, and random eigenvectors."""
    turn, _ = torch.linalg.qr(randn(len(values), len(values), seed=seed, dtype=DOUBLE))
    return (turn * values) @ turn.T


def solve(matrix):
    (problem,) = eigh([matrix])
    return problem


def assert_solved(matrix, problem, count, close):
    """The leading vectors are orthonormal eigenvectors of the leading values."""
    some = problem.vectors(count)
    assert some.shape == (len(matrix), count)
    assert torch.dist(some.T @ some, torch.eye(count, dtype=DOUBLE)) < 1e-9
    assert torch.dist(matrix @ some, some * problem.values[:count]) < close


@pytest.fixture
def calls(monkeypatch):
    """How often eigenvectors are made: one by one, and all of them."""
    counts = {"some": 0, "all": 0}

    def counting(name, function):
        def counted(*arguments, **keywords):
            counts[name] += 1
            return function(*arguments, **keywords)

        return counted

    monkeypatch.setattr(native, "eigenvectors", counting("some", native.eigenvectors))
    monkeypatch.setattr(torch.linalg, "eigh", counting("all", torch.linalg.eigh))
    return counts


# --- Eigenproblems ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 200])
def test_values_and_vectors_solve_the_problem(n):
    matrix = squares(n)
    problem = solve(matrix)
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    assert torch.allclose(problem.values, expected, rtol=0, atol=1e-12 * float(expected[0]))
    assert_solved(matrix, problem, n, 1e-12 * n * float(expected[0]))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), rank=st.integers(1, 40), count=st.integers(0, 40))
def test_leading_vectors_are_those_of_the_largest_values(n, rank, count):
    matrix = squares(n, rank)
    assert_solved(matrix, solve(matrix), min(n, count), 1e-12 * n * float(matrix.norm()))


def test_several_are_solved_as_each_alone_also_when_they_are_more_than_fit_together():
    matrices = [squares(30, seed=seed) for seed in range(2 * native.TOGETHER + 1)]
    for matrix, together in zip(matrices, eigh(matrices), strict=True):
        alone = solve(matrix)
        assert torch.equal(together.values, alone.values)
        assert torch.equal(together.vectors(9), alone.vectors(9))
    assert list(eigh([])) == []


def test_only_the_upper_triangle_is_read_and_nothing_written():
    matrix = squares(90)
    upper = matrix.triu()
    problem = solve(upper)
    assert torch.equal(problem.vectors(10), solve(matrix).vectors(10))
    assert torch.equal(upper, matrix.triu())


def test_vectors_do_not_depend_on_what_was_asked_before():
    matrix = squares(120)
    asked, fresh = solve(matrix), solve(matrix)
    for count in (30, 120, 60):
        asked.vectors(count)
    asked.combined(torch.ones(40, dtype=DOUBLE))
    assert torch.equal(asked.vectors(30), fresh.vectors(30))


def test_vectors_asked_for_again_are_not_computed_twice(calls):
    problem = solve(squares(60))
    assert torch.equal(problem.vectors(20), problem.vectors(20))
    assert calls == {"some": 1, "all": 0}


EQUAL = {
    "all": torch.ones(150),
    "in three": torch.arange(150) // 50,
    "in two": torch.arange(150) < 30,
}


@pytest.mark.parametrize("kind", EQUAL)
@pytest.mark.parametrize("diagonal", [True, False])
def test_vectors_of_equal_eigenvalues_are_orthonormal_and_not_made_twice(kind, diagonal, calls):
    values = EQUAL[kind].double()
    matrix = values.diag() if diagonal else turned(values)
    for count in (1, 20, 70, 150):
        problem = solve(matrix)
        calls.update(some=0, all=0)
        assert_solved(matrix, problem, count, 1e-10)
        assert sum(calls.values()) == 1


@pytest.mark.parametrize("apart", [1e-6, 1e-9, 1e-11, 1e-12, 1e-13, 1e-14, 1e-15])
def test_vectors_of_nearly_equal_eigenvalues_are_orthonormal_and_not_made_twice(apart, calls):
    matrix = turned(1.0 - apart * torch.arange(150, dtype=DOUBLE))
    for count in (10, 40, 120):
        problem = solve(matrix)
        calls.update(some=0, all=0)
        assert_solved(matrix, problem, count, 1e-12)
        assert sum(calls.values()) == 1


def test_all_vectors_once_made_serve_every_later_question(calls):
    problem = solve(turned(torch.ones(60, dtype=DOUBLE)))
    for count in (40, 20, 60):
        problem.vectors(count)
        problem.combined(torch.linspace(1, 2, count, dtype=DOUBLE))
    assert calls == {"some": 0, "all": 1}


@pytest.mark.parametrize("ratio", [1.0, 1e-2, 1e-3])
def test_leading_vectors_of_low_rank_and_noise_are_found_one_by_one(ratio, calls):
    signal = randn(200, 8) @ randn(8, 200, seed=1)
    matrix = mirror(gram(signal + ratio * randn(200, 200, seed=2)))
    assert_solved(matrix, solve(matrix), 50, 1e-10 * float(matrix.norm()))
    assert calls == {"some": 1, "all": 0}


@pytest.mark.parametrize("n", [1, 2, 150])
def test_a_zero_matrix_has_zero_values_and_orthonormal_vectors(n):
    matrix = torch.zeros(n, n, dtype=DOUBLE)
    problem = solve(matrix)
    assert not problem.values.any()
    assert_solved(matrix, problem, n, 1e-300)


def test_an_empty_matrix_has_no_values():
    problem = solve(torch.zeros(0, 0, dtype=DOUBLE))
    assert len(problem.values) == 0
    assert problem.vectors(0).shape == (0, 0)
    assert problem.combined(torch.zeros(0, dtype=DOUBLE)).shape == (0, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_without_values_is_an_error(bad):
    matrix = squares(10)
    matrix[3, 7] = bad
    with pytest.raises(ArithmeticError, match="NaN or infinity"):
        eigh([squares(10), matrix])


def test_threads_give_the_bits_that_one_gives():
    matrices = [squares(150, seed=seed) for seed in range(6)]
    matrices[2] = turned(torch.ones(150, dtype=DOUBLE))

    def bits(matrix):
        problem = solve(matrix)
        combined = problem.combined(torch.linspace(1, 2, 150, dtype=DOUBLE))
        return torch.cat([problem.values[None], problem.vectors(50).T, combined])

    alone = [bits(matrix) for matrix in matrices]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(bits, matrices))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


KINDS = {
    "full": squares(20),
    "of low rank": squares(20, 7),
    "graded": gram(randn(20, 20) * torch.logspace(0, -7, 20)),
    "zero": torch.zeros(20, 20, dtype=DOUBLE),
    "one": torch.eye(20, dtype=DOUBLE),
    "repeated": turned(1.0 + torch.arange(20) % 3),
    "small": 1e-80 * squares(20),
    "large": 1e76 * squares(20),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 9, 20])
def test_combined_vectors_are_their_weighted_outer_products(kind, count):
    problem = solve(mirror(KINDS[kind].clone()))
    weights = torch.rand(count, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    before = problem.vectors(count).clone()
    combined = problem.combined(weights)
    assert torch.dist(combined, before * weights @ before.T) < 1e-12
    assert torch.equal(combined, combined.T)
    assert torch.equal(problem.vectors(count), before)
    assert torch.equal(problem.combined(weights), combined)


@pytest.mark.parametrize("common", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("differing", [0, 1, 10, 40])
def test_vectors_of_the_commonest_weight_are_not_made_and_not_missed(
    common, differing, calls, monkeypatch
):
    problem = solve(squares(60))
    weights = torch.full((60,), common, dtype=DOUBLE)
    weights[60 - differing :] = torch.linspace(0.6, 1.0, differing, dtype=DOUBLE)
    vectors = problem.vectors(60).clone()
    asked = []
    make = native.eigenvectors

    def noting(diagonal, beside, values, into):
        asked.append(len(values))
        make(diagonal, beside, values, into)

    monkeypatch.setattr(native, "eigenvectors", noting)
    combined = problem.combined(weights)
    assert torch.dist(combined, vectors * weights @ vectors.T) < 1e-11
    # With too many that differ, all those with a weight are made, by one way.
    assert sum(asked) == (differing if 2 * differing <= 60 else 60)


def test_weights_that_are_alike_to_float32_rounding_count_as_the_same(calls):
    weights = 1.0 + 1e-7 * torch.rand(60, dtype=DOUBLE)
    assert torch.dist(solve(squares(60)).combined(weights), torch.eye(60, dtype=DOUBLE)) < 1e-5
    assert calls == {"some": 0, "all": 0}


# --- Products ---------------------------------------------------------------------------------


def views(matrix):
    """The matrix, contiguous and as views with other strides."""
    wide = torch.zeros(matrix.shape[0], 2 * matrix.shape[1], dtype=matrix.dtype)
    wide[:, ::2] = matrix
    return [matrix, matrix.mT.contiguous().mT, wide[:, ::2]]


@pytest.mark.parametrize("shape", [(5, 3), (3000, 130), (130, 160), (0, 4), (4, 0)])
def test_gram_matrices_are_exact(shape):
    matrix = randn(*shape, seed=4)
    expected = matrix.double().T @ matrix.double()
    for view in views(matrix):
        found = gram(view)
        assert found.dtype == DOUBLE
        assert torch.allclose(found.triu(), expected.triu(), rtol=1e-13, atol=1e-11)
        again = gram(view, found.clone())
        assert torch.allclose(again.triu(), 2 * expected.triu(), rtol=1e-13, atol=1e-11)


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (300, 200), (40, 200)])
def test_the_largest_eigenvalue_is_found_but_for_some_percent(shape):
    matrix = randn(*shape, seed=4)
    exact = float(torch.linalg.matrix_norm(matrix.double(), 2)) ** 2 if matrix.numel() else 0.0
    found = largest_eigenvalue(symmetric_product(matrix.double()))
    assert 0.95 * exact <= found <= exact * (1 + 1e-12)


def test_a_mirrored_matrix_is_symmetric_and_keeps_its_upper_triangle():
    matrix = randn(37, 37, dtype=DOUBLE)
    upper = matrix.triu()
    assert torch.equal(mirror(matrix), upper + upper.triu(1).mT)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (300, 140)])
def test_symmetric_products_are_symmetric_to_the_bit(shape, dtype):
    for view in views(randn(*shape, dtype=dtype)):
        found = symmetric_product(view)
        assert found.dtype == dtype
        assert torch.equal(found, found.T)
        assert torch.allclose(found, view.T @ view, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (70, 33, 20), (20, 0, 3), (0, 5, 3), (5, 3, 0)])
def test_products_have_the_precision_of_the_right_factor(sizes):
    m, k, n = sizes
    left, right = randn(m, k), randn(k, n, seed=1)
    exact = left.double() @ right.double()
    for view in views(left):
        for factor, close in ((right, 1e-4), (right.double(), 1e-12)):
            found = product(view, factor)
            assert found.dtype == factor.dtype
            assert torch.allclose(found.double(), exact, rtol=0, atol=close)
            into = torch.full_like(found, float("nan"))
            assert product(view, factor, into) is into
            assert torch.equal(into, found)
            assert torch.equal(apply(view, factor), found.float())


def test_a_float64_factor_is_applied_in_float64_and_rounded_once():
    # 1e8 and its negation cancel: in float32 what is left would be lost.
    matrix = torch.tensor([[1e8, 1e8]])
    factor = torch.tensor([[1.0], [-1.0 + 1e-9]], dtype=DOUBLE)
    assert float(apply(matrix, factor)) == pytest.approx(0.1, rel=1e-6)


# --- Sums over the experts --------------------------------------------------------------------

WEIGHTS = (1.0, -0.3, 0.25, 2.0, 1e-3)


def test_blocks_are_summed_to_the_bit_as_the_whole():
    tensors = randn(5, 37, 11, seed=2)
    whole = weighted_sum(tensors, WEIGHTS)
    rows = [weighted_sum(tensors[:, i : i + 5], WEIGHTS) for i in range(0, 37, 5)]
    flat = tensors.flatten(1)
    pieces = [weighted_sum(flat[:, i : i + 7], WEIGHTS) for i in range(0, 407, 7)]
    assert torch.equal(whole, torch.cat(rows))
    assert torch.equal(whole.flatten(), torch.cat(pieces))


def test_sums_and_inner_products_of_transposed_views_are_those_of_the_copies():
    tensors = randn(5, 37, 11, seed=3)
    view = tensors.mT.contiguous().mT
    assert torch.equal(weighted_sum(view, WEIGHTS), weighted_sum(tensors, WEIGHTS))
    for each in (tensors, view, tensors[:, ::2].repeat_interleave(2, 1)[:, :37]):
        wide = each.flatten(1).double()
        expected = (wide @ wide.T).triu().numpy()
        np.testing.assert_allclose(inner_products(each), expected, rtol=1e-13, atol=1e-11)
