"""Eigenvectors made in part are those of the whole, on any number of threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.merging.kernels.tridiagonal import TOGETHER
from worker.merging.linalg.kernels import symmetric_product
from worker.merging.linalg.products import gram
from worker.merging.linalg.tridiagonal import Eigenproblem


def squares(n, rank=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return gram(torch.randn(rank or 2 * n, n, generator=generator))


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 200, 256])
def test_values_and_vectors_solve_the_problem(n):
    matrix = squares(n)
    problem = Eigenproblem(matrix)
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    assert torch.allclose(problem.values, expected, rtol=0, atol=1e-12 * float(expected[0]))
    vectors = problem.vectors(n)
    assert torch.dist(vectors.T @ vectors, torch.eye(n, dtype=torch.float64)) < 1e-12 * n
    assert torch.dist(matrix @ vectors, vectors * problem.values) < 1e-12 * n * float(expected[0])


KINDS = {
    "full": lambda n, g: torch.randn(2 * n, n, dtype=torch.float64, generator=g),
    "of low rank": lambda n, g: torch.randn(-(-n // 3), n, dtype=torch.float64, generator=g),
    "graded": lambda n, g: (
        torch.randn(n, n, dtype=torch.float64, generator=g) * torch.logspace(0, -7, n)
    ),
    "graded the other way": lambda n, g: (
        torch.randn(n, n, dtype=torch.float64, generator=g) * torch.logspace(-7, 0, n)
    ),
    "zero": lambda n, g: torch.zeros(n, n, dtype=torch.float64),
    "one": lambda n, g: torch.eye(n, dtype=torch.float64),
    "repeated": lambda n, g: (
        torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=g))[0]
        * (1 + torch.arange(n) % 3)
    ),
    "small": lambda n, g: 1e-40 * torch.randn(n, n, dtype=torch.float64, generator=g),
    "large": lambda n, g: 1e38 * torch.randn(n, n, dtype=torch.float64, generator=g),
}


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 70),
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=TOGETHER),
    seed=st.integers(0, 2**16),
)
def test_matrices_solved_together_have_the_values_of_each(n, kinds, seed):
    generator = torch.Generator().manual_seed(seed)
    matrices = [KINDS[kind](n, generator) for kind in kinds]
    matrices = [matrix.T @ matrix for matrix in matrices]
    problems = Eigenproblem.solved(matrices)
    for matrix, problem in zip(matrices, problems, strict=True):
        expected = torch.linalg.eigvalsh(matrix).flip(0)
        close = 4e-15 * n * float(expected.abs().max())
        for values in (problem.values, Eigenproblem(matrix).values):
            torch.testing.assert_close(values, expected, rtol=0, atol=close)


@pytest.mark.parametrize("exponent", [-145, -140, -135, -100, 100, 140, 145])
@pytest.mark.parametrize("together", [1, 2, 4])
def test_values_are_exact_at_any_scale(exponent, together):
    matrix = squares(40)
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    for problem in Eigenproblem.solved([matrix * 10.0**exponent] * together):
        found = problem.values / 10.0**exponent
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-13 * float(expected[0]))


def test_entries_whose_squares_overflow_are_an_error():
    with pytest.raises(ArithmeticError):
        _ = Eigenproblem(squares(10) * 1e200).values


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (3, 7), (9, 9)])
def test_a_matrix_without_values_is_an_error(bad, place):
    matrix = squares(10)
    matrix[place] = matrix[place[::-1]] = bad
    with pytest.raises(ArithmeticError, match="NaN or infinity"):
        _ = Eigenproblem(matrix).values
    with pytest.raises(ArithmeticError, match="NaN or infinity"):
        Eigenproblem.solved([squares(10), matrix])


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), rank=st.integers(1, 40), count=st.integers(0, 40))
def test_leading_vectors_are_those_of_the_largest_values(n, rank, count):
    matrix = squares(n, rank)
    problem = Eigenproblem(matrix)
    count = min(n, count)
    some = problem.vectors(count)
    assert some.shape == (n, count)
    assert torch.dist(some.T @ some, torch.eye(count, dtype=torch.float64)) < 1e-9
    expected = some * torch.linalg.eigvalsh(matrix).flip(0)[:count]
    assert torch.dist(matrix @ some, expected) < 1e-12 * n * float(matrix.norm())


@pytest.mark.parametrize("count", [1, 40, 100])
def test_some_vectors_span_what_all_of_them_do(count):
    matrix = squares(200)
    some = Eigenproblem(matrix).vectors(count)
    every = Eigenproblem(matrix).vectors(200)[:, :count]
    assert torch.allclose((some.T @ every).abs().diagonal(), torch.ones(count).double())


def test_vectors_do_not_depend_on_what_was_asked_before():
    matrix = squares(200)
    asked, fresh = Eigenproblem(matrix), Eigenproblem(matrix)
    for count in (30, 200, 60):
        asked.vectors(count)
    assert torch.equal(asked.vectors(30), fresh.vectors(30))


@pytest.mark.parametrize("count", [1, 20, 70])
def test_some_vectors_of_equal_eigenvalues_are_orthonormal(count):
    generator = torch.Generator().manual_seed(3)
    turn, _ = torch.linalg.qr(torch.randn(150, 150, dtype=torch.float64, generator=generator))
    for values in (torch.ones(150), torch.arange(150) // 50, torch.arange(150) < 30):
        for matrix in (values.double().diag(), (turn * values) @ turn.T):
            problem = Eigenproblem(matrix)
            some = problem.vectors(count)
            assert torch.dist(some.T @ some, torch.eye(count, dtype=torch.float64)) < 1e-9
            assert torch.dist(matrix @ some, some * problem.values[:count]) < 1e-10


@pytest.mark.parametrize("apart", [1e-6, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize("count", [10, 40, 120])
def test_vectors_of_nearly_equal_eigenvalues_are_orthonormal(apart, count):
    generator = torch.Generator().manual_seed(4)
    turn, _ = torch.linalg.qr(torch.randn(150, 150, dtype=torch.float64, generator=generator))
    values = 1.0 - apart * torch.arange(150, dtype=torch.float64)
    matrix = (turn * values) @ turn.T
    problem = Eigenproblem(matrix)
    some = problem.vectors(count)
    assert torch.dist(some.T @ some, torch.eye(count, dtype=torch.float64)) < 1e-9
    assert torch.dist(matrix @ some, some * problem.values[:count]) < 1e-12


@pytest.mark.parametrize("ratio", [1.0, 1e-2, 1e-4])
def test_leading_vectors_of_low_rank_and_noise_need_no_division(monkeypatch, ratio):
    def conquered(_):
        raise AssertionError("divide and conquer")

    monkeypatch.setattr(Eigenproblem, "_all", property(conquered))
    generator = torch.Generator().manual_seed(5)
    signal = torch.randn(200, 8, generator=generator) @ torch.randn(8, 200, generator=generator)
    matrix = gram(signal + ratio * torch.randn(200, 200, generator=generator))
    vectors = Eigenproblem(matrix).vectors(50)
    assert torch.dist(vectors.T @ vectors, torch.eye(50, dtype=torch.float64)) < 1e-9


def test_equal_and_zero_eigenvalues_have_orthonormal_vectors():
    for matrix in (torch.eye(150), torch.zeros(150, 150), torch.diag(torch.arange(150) // 50)):
        vectors = Eigenproblem(matrix.double()).vectors(150)
        assert torch.dist(vectors.T @ vectors, torch.eye(150, dtype=torch.float64)) < 1e-12


def test_the_matrix_is_not_written_to():
    matrix = squares(90)
    before = matrix.clone()
    Eigenproblem(matrix).vectors(10)
    assert torch.equal(matrix, before)


def test_threads_give_the_bits_that_one_gives():
    matrices = [squares(200, seed=seed) for seed in range(6)]

    def solve(matrix):
        problem = Eigenproblem(matrix)
        return torch.cat([problem.values[None], problem.vectors(50).T])

    alone = [solve(matrix) for matrix in matrices]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(solve, matrices))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (300, 140)])
def test_symmetric_products_are_symmetric_to_the_bit(shape, dtype):
    matrix = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for view in (matrix, matrix[:, ::2], matrix.T):
        product = symmetric_product(view)
        assert product.dtype == dtype
        assert torch.equal(product, product.T)
        assert torch.allclose(product, view.T @ view, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("count", [0, 1, 9, 20])
def test_combined_vectors_are_their_weighted_outer_products(kind, count):
    generator = torch.Generator().manual_seed(3)
    matrix = KINDS[kind](20, generator)
    problem = Eigenproblem(matrix.T @ matrix)
    weights = torch.rand(count, dtype=torch.float64, generator=generator)
    before = problem.vectors(count).clone()
    combined = problem.combined(weights)
    assert torch.dist(combined, before * weights @ before.T) < 1e-12
    assert torch.equal(combined, combined.T)
    assert torch.equal(problem.vectors(count), before)
    assert torch.equal(problem.combined(weights), combined)
