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
from worker.merging.kernels.combining import Combination
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


def energies(build: ctypes.CDLL, tensors: torch.Tensor) -> bytes:
    result = np.zeros(EXPERTS)
    ranked = tensors[0].abs().contiguous()
    key = int(np.float32(5e-4).view(np.int32))
    rows = (POINTER(address(tensors)), LONG(EXPERTS), LONG(ENTRIES))
    build.add_energies(*rows, POINTER(address(ranked)), key, LONG(700), POINTER(result.ctypes.data))
    return result.tobytes()


def competition(build: ctypes.CDLL, tensors: torch.Tensor) -> bytes:
    result = torch.empty(ENTRIES)
    lows, highs = floats([1e-5] * EXPERTS), floats([2e-3] * EXPERTS)
    bottoms, tops = floats([1e-9] * EXPERTS), floats([4e-6] * EXPERTS)
    rows = (POINTER(address(tensors)), LONG(EXPERTS), LONG(ENTRIES))
    build.competition_mean(
        *rows, lows, highs, 1, bottoms, tops, library.FLOAT(1e-12), POINTER(address(result))
    )
    return result.numpy().tobytes()


def combined(build: ctypes.CDLL, tensors: torch.Tensor) -> bytes:
    what = Combination([0.5, -1.0, 2.0, 0.25], [0.3, 1.0], subtracted=True)
    result = torch.empty(2, ENTRIES)
    rows = (POINTER(address(tensors)), LONG(EXPERTS), LONG(ENTRIES), LONG(ENTRIES))
    build.combine_rows(*rows, what.pointer, POINTER(address(result)))
    return result.numpy().tobytes()


def eigenvectors(build: ctypes.CDLL, tensors: torch.Tensor) -> bytes:
    n, count = 40, 11
    diagonal = torch.arange(n, dtype=torch.float64) / 7
    beside = torch.linspace(0.1, 1.0, n - 1, dtype=torch.float64)
    matrix = diagonal.diag() + beside.diag(1) + beside.diag(-1)
    values = torch.linalg.eigvalsh(matrix)[-count:].contiguous()
    result = torch.empty(count, n, dtype=torch.float64)
    doubles = [POINTER(t.data_ptr()) for t in (diagonal, beside, values, result)]
    build.tridiagonal_vectors(
        *doubles[:2], LONG(n), doubles[2], LONG(count), ctypes.c_double(1e-18), doubles[3], LONG(n)
    )
    return result.numpy().tobytes()


def eigenvalues(build: ctypes.CDLL, tensors: torch.Tensor) -> bytes:
    n, count = 40, 3
    diagonal = torch.arange(n, dtype=torch.float64) / 7
    beside = torch.linspace(0.1, 1.0, n, dtype=torch.float64)
    result = torch.empty(count, n, dtype=torch.float64)
    rows = [(POINTER * count)(*[t.data_ptr()] * count) for t in (diagonal, beside)]
    build.tridiagonal_values(*rows, LONG(n), LONG(count), POINTER(result.data_ptr()))
    return result.numpy().tobytes()


@pytest.mark.skipif(len(BUILDS) < 2, reason="this processor runs one build only")
@pytest.mark.parametrize(
    "kernel",
    [
        agreeing,
        scores,
        competition,
        spreads,
        energies,
        inner_products,
        combined,
        eigenvalues,
        eigenvectors,
    ],
)
def test_every_instruction_set_gives_the_same_bits(kernel, tensors):
    results = {kernel(ctypes.CDLL(str(build)), tensors) for build in BUILDS}
    assert len(results) == 1


def test_the_best_build_comes_first_and_one_for_any_processor_is_there():
    assert BUILDS
    assert [path.name for path in BUILDS] == sorted((p.name for p in BUILDS), reverse=True)


def test_a_processor_without_the_instructions_is_given_the_plainest_build(monkeypatch):
    if library.platform.machine() != "x86_64":
        pytest.skip("other processors have one build")
    plain = {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3", "avx512f"}
    monkeypatch.setattr(library, "_instructions", lambda: plain)
    assert [path.stem for path in library.builds()] == ["native_x86_64_v2"]
    monkeypatch.setattr(library, "_instructions", set)
    assert library.builds() == []


def test_a_build_of_other_sources_is_refused(monkeypatch):
    library._library.cache_clear()
    monkeypatch.setattr(library, "_digest", lambda: "of other sources")
    with pytest.raises(ImportError, match="make install"):
        library._library()
    library._library.cache_clear()


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
