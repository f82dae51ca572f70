"""What every method's tests share: a way to run one on tensors, and tensors made at random."""

import math

import pytest
import torch
from jaxtyping import install_import_hook

from app.contract.catalogue import CATALOGUE

install_import_hook("worker.merging.linalg", "beartype.beartype")

from benchmarks.in_memory import merge_in_memory  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run():
    """A function that merges tensors in memory; with what the method had to say."""
    return merge_in_memory


@pytest.fixture
def merge():
    """As `run`, the merged tensor alone."""
    return lambda *given, **parameters: merge_in_memory(*given, **parameters).tensor


@pytest.fixture
def merge_in_blocks():
    """As `merge`, by blocks of so many rows."""
    return lambda name, tensors, rows, weights=None, **more: (
        merge_in_memory(name, tensors, weights, rows=rows, **more).tensor
    )


@pytest.fixture
def random_tensors():
    """Experts' task matrices whose spectra decay, so that float32 determines the merge of them."""

    def make(experts, shape, seed=0, smallest=0.01):
        generator = torch.Generator().manual_seed(seed)
        stack = []
        for _ in range(experts):
            m, n = shape
            u, _ = torch.linalg.qr(torch.randn(m, min(shape), generator=generator).double())
            v, _ = torch.linalg.qr(torch.randn(n, min(shape), generator=generator).double())
            stack.append((u * torch.logspace(0, math.log10(smallest), min(shape))) @ v.T)
        return 0.01 * torch.stack(stack).float()

    return make


@pytest.fixture
def method_class():
    return CATALOGUE.__getitem__
