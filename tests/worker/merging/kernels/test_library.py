"""The kernels' builds: the same bits on every instruction set, clear words where none fits."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from worker.merging.kernels import library
from worker.merging.kernels.library import LONG, POINTER, address, floats

BUILDS = library.builds()
EXPERTS, ENTRIES = 5, 3 * 1024 + 37  # more than one chunk, and not a whole number of lanes


@pytest.fixture
def tensors() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(EXPERTS, ENTRIES, generator=generator) * 1e-3
    made[:, ::7] = 0.0
    made[1, ::11] = -0.0
    made[2] = made[1]
    return made


def agreeing(build: ctypes.CDLL, tensors: torch.Tensor) -> bytes:
    result = torch.empty(ENTRIES)
    keys = np.full(EXPERTS, np.float32(5e-4).view(np.int32), np.int32)
    splits = np.arange(EXPERTS) * 500
    build.agreeing_sum(
        POINTER(address(tensors)), LONG(EXPERTS), LONG(ENTRIES), floats([1, -2, 3, 0.5, 1]), 1,
        POINTER(keys.ctypes.data), POINTER(splits.ctypes.data), 1, POINTER(address(result)),
    )  # fmt: skip
    return result.numpy().tobytes()


def scores(build: ctypes.CDLL, tensors: torch.Tensor) -> bytes:
    result = torch.empty(EXPERTS, ENTRIES)
    lows, highs = floats([1e-5] * EXPERTS), floats([2e-3] * EXPERTS)
    build.competition_scores(
        POINTER(address(tensors)), LONG(EXPERTS), LONG(ENTRIES), lows, highs, 1,
        POINTER(address(result)),
    )  # fmt: skip
    return result.numpy().tobytes()


def spreads(build: ctypes.CDLL, tensors: torch.Tensor) -> bytes:
    result = torch.empty(ENTRIES)
    rows = (POINTER(address(tensors)), LONG(EXPERTS), LONG(ENTRIES))
    build.spread(*rows, POINTER(address(result)))
    return result.numpy().tobytes()


def inner_products(build: ctypes.CDLL, tensors: torch.Tensor) -> bytes:
    gram = np.zeros((EXPERTS, EXPERTS))
    rows = (POINTER(address(tensors)), LONG(EXPERTS), LONG(ENTRIES))
    build.add_inner_products(*rows, POINTER(gram.ctypes.data))
    return gram.tobytes()


@pytest.mark.skipif(len(BUILDS) < 2, reason="this processor runs one build only")
@pytest.mark.parametrize("kernel", [agreeing, scores, spreads, inner_products])
def test_every_instruction_set_gives_the_same_bits(kernel, tensors):
    results = {kernel(ctypes.CDLL(str(build)), tensors) for build in BUILDS}
    assert len(results) == 1


def test_the_best_build_comes_first_and_one_for_any_processor_is_there():
    assert BUILDS
    assert [path.name for path in BUILDS] == sorted((p.name for p in BUILDS), reverse=True)


def test_a_processor_without_the_instructions_is_given_the_plainest_build(monkeypatch):
    monkeypatch.setattr(library, "_instructions", set)
    if library.platform.machine() == "x86_64":
        assert [path.stem for path in library.builds()] == ["native_x86_64_v2"]


def test_without_a_build_the_error_says_what_to_do(tmp_path):
    script = (
        "import pathlib, worker.merging.kernels.library as library\n"
        "library.builds = lambda: []\n"
        "from worker.merging.kernels import sums\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(library.__file__).parents[3],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ImportError" in done.stderr
    assert "pip install -e ." in done.stderr


@pytest.mark.parametrize(
    "array",
    [
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(4, 4)[:, 0],
        np.zeros(4, np.float64),
        np.zeros((4, 4), np.float32).T[1:],
    ],
)
def test_what_a_kernel_cannot_take_is_refused(array):
    with pytest.raises(TypeError, match="contiguous"):
        address(array, torch.float32 if isinstance(array, torch.Tensor) else np.float32)
