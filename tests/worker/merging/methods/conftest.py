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
            seed=lambda index: index,
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
def merge_in_blocks(make_inputs):
    """As `merge`, by blocks of so many rows, surveyed by stretches of so many, as the engine does.

    Blocks are flat, unless the method wants rows.
    """
    from worker.merging.interface import About, Survey
    from worker.merging.methods import load

    def run(name, tensors, rows, weights=None, *, stretch=None, **given):
        method, parameters = load(name), parse_parameters(name, given)
        count, row = len(tensors), tensors[0][0].numel()

        def block(start):
            inputs = make_inputs(tensors[:, start : start + rows], weights)
            if not parameters.row_blocks:
                inputs.base, inputs.tensors = inputs.base.flatten(), inputs.tensors.flatten(1)
            inputs.start = start * row
            return inputs.summed() if parameters.of_sum else inputs

        starts = range(0, tensors.shape[1], rows)
        stretch = stretch or tensors.shape[1]
        known = ()
        if method.survey is not None:
            about = About("a.tensor", tuple(tensors.shape[1:]), tuple(weights or [1.0] * count))
            answer = method.survey(about, parameters, None)
            finished = None
            while isinstance(answer, Survey):
                parts = []
                for first in range(0, tensors.shape[1], stretch):
                    part = method.survey(about, parameters, finished)
                    for start in range(first, min(first + stretch, tensors.shape[1]), rows):
                        part.add(block(start))
                    parts.append(part)
                finished, *others = parts
                for later in others:
                    finished.join(later)
                answer = method.survey(about, parameters, finished)
            known = (answer,)
        merged = [method.merge(block(start), parameters, *known).flatten() for start in starts]
        return torch.cat(merged).view(tensors.shape[1:])

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
