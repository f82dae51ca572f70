"""The kernels' builds: the same bits on every instruction set, a clear error where none fits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.kernels import bits, bound_to, cases
from worker.merging.native import binding

BUILDS = binding.builds()
ENTRIES, SIDE = 3 * 1024 + 37, 45
"""More than one chunk, and not a whole number of lanes."""


@pytest.mark.skipif(len(BUILDS) < 2, reason="this processor runs one build only")
def test_every_instruction_set_gives_the_same_bits(tmp_path):
    modules = [bound_to(build) for build in BUILDS]
    for name, case in cases(tmp_path, ENTRIES, SIDE).items():
        best, *others = (bits(case.call(module)) for module in modules)
        if case.exact:
            assert all(other == best for other in others), name


@pytest.mark.parametrize("build", BUILDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_every_build_multiplies(build, precision):
    left, right = torch.randn(101, 203), torch.randn(203, 53, dtype=torch.float64)
    out = torch.empty(101, 60)[:, :53]
    bound_to(build).multiply(left, right, out, precision=precision)
    torch.testing.assert_close(out, (left.double() @ right).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", BUILDS, ids=lambda path: path.stem)
def test_every_build_reduces_and_transforms_back(build):
    native, root = bound_to(build), torch.randn(2 * SIDE, SIDE, dtype=torch.float64)
    matrix = root.T @ root
    form = native.TridiagonalForm.of(matrix)
    beside = form.off_diagonal[: SIDE - 1]
    vectors = torch.eye(SIDE, SIDE + 8, dtype=torch.float64)
    form.back_transform(vectors)
    basis = vectors[:, :SIDE]
    dense = form.diagonal.diag() + beside.diag(1) + beside.diag(-1)
    torch.testing.assert_close(basis @ matrix @ basis.T, dense, rtol=0, atol=1e-11)


def test_the_best_build_comes_first_and_one_for_any_processor_is_there():
    assert BUILDS
    assert [path.name for path in BUILDS] == sorted((p.name for p in BUILDS), reverse=True)


def test_a_processor_without_the_instructions_gets_the_plainest_build(monkeypatch):
    if binding.platform.machine() != "x86_64":
        pytest.skip("other processors have one build")
    plain = {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3", "avx512f"}
    monkeypatch.setattr(binding, "_instructions", lambda: plain)
    assert [path.stem for path in binding.builds()] == ["native_x86_64_v2"]
    monkeypatch.setattr(binding, "_instructions", set)
    assert binding.builds() == []


def test_a_build_of_other_sources_is_refused(monkeypatch):
    binding._library.cache_clear()
    monkeypatch.setattr(binding, "_digest", lambda: "of other sources")
    with pytest.raises(ImportError, match="make install"):
        binding._library()
    binding._library.cache_clear()


def test_without_a_build_the_error_says_what_to_do():
    script = (
        "import platform; platform.machine = lambda: 'abacus'\n"
        "import worker.merging.native\n"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(binding.__file__).parents[3],
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
def test_an_array_that_a_kernel_cannot_take_is_refused(array):
    with pytest.raises(TypeError, match="contiguous"):
        binding.FLOATS.from_param(array)
