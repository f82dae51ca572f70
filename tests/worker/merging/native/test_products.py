"""Products are torch's, in either precision, however the matrices lie in memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.merging import native

SIDES = st.integers(1, 9)
DTYPES = st.sampled_from([torch.float32, torch.float64])


def layouts(m, n, dtype):
    dense = torch.arange(m * n, dtype=dtype).view(m, n).sin()
    wide = torch.zeros(m, n + 3, dtype=dtype)
    wide[:, :n] = dense
    spread = torch.zeros(2 * m, 3 * n, dtype=dtype)
    spread[::2, ::3] = dense
    return dense, dense.T.contiguous().T, wide[:, :n], spread[::2, ::3]


def product(left, right, dtype, **options):
    out = torch.ones(left.shape[0], right.shape[1], dtype=dtype)
    native.multiply(left, right, out, precision=options.pop("precision", dtype), **options)
    return out


@settings(max_examples=40, deadline=None)
@given(m=SIDES, k=SIDES, n=SIDES, dtype=DTYPES)
def test_products_of_every_layout(m, k, n, dtype):
    for left in layouts(m, k, dtype):
        for right in layouts(k, n, dtype):
            torch.testing.assert_close(product(left, right, dtype), left @ right)
        squares = product(left.T, left, dtype, upper=True)
        native.mirror(squares)
        assert torch.equal(squares, squares.T)
        torch.testing.assert_close(squares, left.T @ left)


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 120), k=st.sampled_from([1, 17, 192, 193, 1536, 1700]), n=SIDES)
def test_float32_is_multiplied_as_float64_without_a_copy(m, k, n):
    """Across the depths at which sums are written and taken up again."""
    left, right = torch.linspace(-1, 1, m * k).view(m, k), torch.linspace(1, 3, k * n).view(k, n)
    double = torch.float64
    expected = left.double() @ right.double()
    close = {"rtol": 1e-13, "atol": 1e-12}
    torch.testing.assert_close(product(left, right.double(), double), expected, **close)
    added = product(left, right, double, add=True)
    torch.testing.assert_close(added, expected + 1, **close)
    rounded = product(left, right.double(), torch.float32, precision=double)
    torch.testing.assert_close(rounded, expected.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (300, 140)])
def test_mirrored_products_are_symmetric_to_the_bit(shape, dtype):
    matrix = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for view in (matrix, matrix[:, ::2], matrix.T):
        squares = product(view.T, view, dtype, upper=True)
        native.mirror(squares)
        assert torch.equal(squares, squares.T)
        torch.testing.assert_close(squares, view.T @ view, rtol=1e-5, atol=1e-4)


def test_a_result_that_cannot_take_the_product_is_refused():
    left, right = torch.ones(3, 4), torch.ones(4, 2)
    with pytest.raises(ValueError, match="do not go into"):
        native.multiply(left, right, torch.ones(2, 3).T, precision=torch.float32)
    with pytest.raises(TypeError, match="float16"):
        native.multiply(left, right, torch.ones(3, 2).half(), precision=torch.float32)


def test_products_with_nothing_are_zero():
    assert not product(torch.ones(3, 0), torch.ones(0, 2), torch.float32).any()
    assert product(torch.ones(0, 3), torch.ones(3, 2), torch.float32).shape == (0, 2)
