"""Products by BLAS are torch's, however the matrices lie in memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.merging.linalg.blas import call
from worker.merging.linalg.kernels import product, symmetric_product

SIDES = st.integers(1, 9)


def layouts(m, n, dtype):
    dense = torch.arange(m * n, dtype=dtype).view(m, n).sin()
    wide = torch.zeros(m, n + 3, dtype=dtype)
    wide[:, :n] = dense
    spread = torch.zeros(2 * m, 3 * n, dtype=dtype)
    spread[::2, ::3] = dense
    return dense, dense.T.contiguous().T, wide[:, :n], spread[::2, ::3]


@settings(max_examples=40, deadline=None)
@given(m=SIDES, k=SIDES, n=SIDES, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_products_of_every_layout(m, k, n, dtype):
    for left in layouts(m, k, dtype):
        for right in layouts(k, n, dtype):
            torch.testing.assert_close(product(left, right), left @ right)
        squares = symmetric_product(left)
        assert torch.equal(squares, squares.T)
        torch.testing.assert_close(squares, left.T @ left)


def test_products_with_nothing_are_zero():
    assert not product(torch.ones(3, 0), torch.ones(0, 2)).any()
    assert product(torch.ones(0, 3), torch.ones(3, 2)).shape == (0, 2)
    assert symmetric_product(torch.ones(5, 0)).shape == (0, 0)
    assert not symmetric_product(torch.ones(0, 4)).any()


def test_a_problem_without_solution_is_an_error():
    values = torch.full((3,), float("nan"), dtype=torch.float64)
    with pytest.raises(ArithmeticError, match="dsterf"):
        call("dsterf", 3, values, torch.ones(2, dtype=torch.float64))
