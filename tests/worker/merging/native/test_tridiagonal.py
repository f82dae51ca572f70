"""Eigenvalues and eigenvectors by way of the tridiagonal form solve the problem."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.merging import native
from worker.merging.native import TOGETHER, TridiagonalForm

DOUBLE = torch.float64


def squares(n, seed=0):
    root = torch.randn(2 * n, n, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return root.T @ root


def solved(matrix):
    """Return the eigenvalues, descending, and the eigenvectors, one a row."""
    n, form = len(matrix), TridiagonalForm.of(matrix)
    values = native.eigenvalues([form])[0].flip(0)
    vectors = torch.empty(n, n + 8, dtype=DOUBLE)
    native.eigenvectors(form.diagonal, form.off_diagonal[: n - 1], values, vectors)
    overlap = native.largest_overlap(vectors, values, n, float("inf"))
    form.back_transform(vectors)
    return values, vectors[:, :n], overlap


@pytest.mark.parametrize("n", [1, 2, 3, 15, 17, 63, 64, 65, 130])
def test_values_and_vectors_solve_the_problem(n):
    matrix = squares(n)
    values, vectors, overlap = solved(matrix)
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12 * float(expected[0]))
    products = vectors @ vectors.T - torch.eye(n, dtype=DOUBLE)
    assert products.abs().max() < 1e-9
    assert overlap == pytest.approx(float(products.triu(1).abs().max()), abs=1e-12)
    assert torch.dist(vectors @ matrix, vectors * values[:, None]) < 1e-11 * n * float(expected[0])


def test_only_the_upper_half_is_read_and_nothing_written():
    matrix = squares(40)
    upper = matrix.triu()
    values = native.eigenvalues([TridiagonalForm.of(upper)])
    assert torch.equal(upper, matrix.triu())
    assert torch.equal(values, native.eigenvalues([TridiagonalForm.of(matrix)]))


def test_a_form_made_again_from_its_stored_arrays_is_the_same():
    form, n = TridiagonalForm.of(squares(40)), 40
    stored = io.BytesIO()
    torch.save((form.reflections, form.diagonal, form.off_diagonal, form.scales), stored)
    stored.seek(0)
    loaded = TridiagonalForm(*torch.load(stored))
    assert torch.equal(native.eigenvalues([form]), native.eigenvalues([loaded]))
    ours, theirs = torch.eye(n, n + 8, dtype=DOUBLE), torch.eye(n, n + 8, dtype=DOUBLE)
    form.back_transform(ours)
    loaded.back_transform(theirs)
    assert torch.equal(ours[:, :n], theirs[:, :n])
    with pytest.raises(ValueError, match="40 rows"):
        TridiagonalForm(form.reflections[1:], form.diagonal, form.off_diagonal, form.scales)


KINDS = {
    "full": lambda n, g: torch.randn(2 * n, n, dtype=DOUBLE, generator=g),
    "of low rank": lambda n, g: torch.randn(-(-n // 3), n, dtype=DOUBLE, generator=g),
    "graded": lambda n, g: torch.randn(n, n, dtype=DOUBLE, generator=g) * torch.logspace(0, -7, n),
    "graded the other way": lambda n, g: (
        torch.randn(n, n, dtype=DOUBLE, generator=g) * torch.logspace(-7, 0, n)
    ),
    "zero": lambda n, g: torch.zeros(n, n, dtype=DOUBLE),
    "one": lambda n, g: torch.eye(n, dtype=DOUBLE),
    "repeated": lambda n, g: (
        torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE, generator=g))[0] * (1 + torch.arange(n) % 3)
    ),
    "small": lambda n, g: 1e-40 * torch.randn(n, n, dtype=DOUBLE, generator=g),
    "large": lambda n, g: 1e38 * torch.randn(n, n, dtype=DOUBLE, generator=g),
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
    forms = [TridiagonalForm.of(matrix) for matrix in matrices]
    found = native.eigenvalues(forms)
    for matrix, form, values in zip(matrices, forms, found, strict=True):
        expected = torch.linalg.eigvalsh(matrix)
        close = 4e-15 * n * float(expected.abs().max())
        torch.testing.assert_close(values, expected, rtol=0, atol=close)
        assert torch.equal(native.eigenvalues([form])[0], values)


@pytest.mark.parametrize("exponent", [-145, -140, -135, -100, 100, 140, 145])
def test_values_are_exact_at_any_scale(exponent):
    matrix = squares(40)
    expected = torch.linalg.eigvalsh(matrix)
    found = native.eigenvalues([TridiagonalForm.of(matrix * 10.0**exponent)])[0] / 10.0**exponent
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-13 * float(expected[-1]))


def test_a_matrix_without_values_is_an_error():
    bad = [squares(10) * 1e200]
    for entry in (float("nan"), float("inf")):
        for place in ((0, 0), (3, 7), (9, 9)):
            bad.append(squares(10))
            bad[-1][place] = bad[-1][place[::-1]] = entry
    for matrix in bad:
        for forms in ([matrix], [squares(10), matrix]):
            with pytest.raises(ArithmeticError, match="NaN or infinity"):
                native.eigenvalues([TridiagonalForm.of(form) for form in forms])


def test_only_near_vectors_are_looked_at_and_nan_is_the_largest_overlap():
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]], dtype=DOUBLE)
    values = torch.tensor([3.0, 2.0, 0.0], dtype=DOUBLE)
    assert native.largest_overlap(vectors, values, 2, 0.5) == 0.0
    assert native.largest_overlap(vectors, values, 2, 1.0) == pytest.approx(0.6)
    assert native.largest_overlap(vectors, values, 2, 3.0) == 1.0
    vectors[0, 0] = float("nan")
    assert native.largest_overlap(vectors, values, 2, 1.0) != 0.6


def test_a_matrix_may_have_any_strides():
    matrix = squares(40)
    apart = torch.zeros(80, 80, dtype=DOUBLE)[::2, ::2].copy_(matrix)
    assert torch.equal(TridiagonalForm.of(apart).diagonal, TridiagonalForm.of(matrix).diagonal)
