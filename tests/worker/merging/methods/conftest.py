"""What every method's tests share: inputs made by hand or at random, and one BLAS thread."""

import math

import pytest
import torch
from jaxtyping import install_import_hook

from app.contract.catalogue import CATALOGUE, parse_parameters
from worker.merging.interface import MergeInputs

install_import_hook("worker.merging.linalg", "beartype.beartype")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_inputs():
    """A function from task vectors (or weights) and weights to a method's inputs."""

    def make(tensors, weights=None, *, base=None, unit_roundoff=2.0**-24):
        tensors = torch.as_tensor(tensors, dtype=torch.float32)
        return MergeInputs(
            name="model.encoder.layers.0.fc1.weight",
            base=torch.zeros_like(tensors[0]) if base is None else base,
            tensors=tensors,
            weights=tuple(weights or [1.0] * len(tensors)),
            unit_roundoff=unit_roundoff,
            generator=lambda index: torch.Generator().manual_seed(index),
        )

    return make


@pytest.fixture
def merge(make_inputs):
    """A function that merges task vectors (or weights) by a method's name and parameters."""
    from worker.merging.methods import load

    def run(name, tensors, weights=None, *, base=None, unit_roundoff=2.0**-24, **parameters):
        inputs = make_inputs(tensors, weights, base=base, unit_roundoff=unit_roundoff)
        return load(name)(inputs, parse_parameters(name, parameters))

    return run


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
