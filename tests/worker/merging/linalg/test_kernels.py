"""Products are torch's, however the matrices lie in memory and whatever the processor runs."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.merging.kernels import products
from worker.merging.kernels.library import builds
from worker.merging.linalg.kernels import product, symmetric_product
from worker.merging.linalg.products import multiply, upper_gram

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


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 120), k=st.sampled_from([1, 17, 192, 193, 1536, 1700]), n=SIDES)
def test_float32_is_multiplied_as_float64_without_a_copy(m, k, n):
    """Across the depths at which sums are put down and taken up again."""
    left, right = torch.linspace(-1, 1, m * k).view(m, k), torch.linspace(1, 3, k * n).view(k, n)
    expected, upper = left.double() @ right.double(), torch.ones(n, n).triu().bool()
    torch.testing.assert_close(product(left, right.double()), expected, rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(multiply(left, right.double()), expected.float())
    squares = upper_gram(right, torch.ones(n, n, dtype=torch.float64))
    expected = right.double().T @ right.double() + 1
    torch.testing.assert_close(squares[upper], expected[upper], rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("build", builds(), ids=lambda path: path.stem)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_every_build_multiplies(build, precision, monkeypatch):
    called = ctypes.CDLL(str(build)).multiply
    called.argtypes, called.restype = products._multiply.argtypes, products._multiply.restype
    monkeypatch.setattr(products, "_multiply", called)
    left, right = torch.randn(101, 203), torch.randn(203, 53, dtype=torch.float64)
    out = torch.empty(101, 60)[:, :53]
    products.multiply(left, right, out, precision=precision)
    torch.testing.assert_close(out, (left.double() @ right).float(), rtol=1e-4, atol=1e-4)


def test_a_result_that_no_row_can_be_written_to_is_refused():
    with pytest.raises(ValueError, match="do not go into"):
        product(torch.ones(3, 4), torch.ones(4, 2), torch.ones(2, 3).T)


def test_products_with_nothing_are_zero():
    assert not product(torch.ones(3, 0), torch.ones(0, 2)).any()
    assert product(torch.ones(0, 3), torch.ones(3, 2)).shape == (0, 2)
    assert symmetric_product(torch.ones(5, 0)).shape == (0, 0)
    assert not symmetric_product(torch.ones(0, 4)).any()
