"""Shapes in the annotations of the linear algebra are checked while its tests run."""

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("worker.merging.linalg", "beartype.beartype")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def matrix_with():
    """A float32 matrix of the given shape and singular values, and random singular vectors."""

    def make(m, n, values, seed=0):
        generator = torch.Generator().manual_seed(seed)
        u, _ = torch.linalg.qr(
            torch.randn(m, len(values), dtype=torch.float64, generator=generator)
        )
        v, _ = torch.linalg.qr(
            torch.randn(n, len(values), dtype=torch.float64, generator=generator)
        )
        return (u * torch.as_tensor(values, dtype=torch.float64) @ v.T).float()

    return make
