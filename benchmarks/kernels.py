"""Times every C kernel of two builds side by side, and says where their results differ.

python -m benchmarks.kernels                        the builds for this processor, best against next
python -m benchmarks.kernels ONE.so OTHER.so        any two, such as those of two compilers
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from worker.merging.native import binding

EXPERTS, ENTRIES, SIDE = 6, 64 * 1024 + 37, 320
WEIGHTS = (0.5, -1.0, 2.0, 0.25, 1.0, 0.75)


class Case(NamedTuple):
    """A kernel's call, which returns what it wrote, and whether all builds must write the same."""

    call: Callable[[Any], Sequence[Any]]
    exact: bool = True


def bound_to(build: Path) -> Any:
    """Return a copy of the binding module that calls this build."""
    spec = importlib.util.spec_from_file_location(f"binding_of_{build.stem}", binding.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    library = ctypes.CDLL(str(build))
    library.sources.restype = ctypes.c_char_p
    if library.sources().decode() != binding._digest():
        raise SystemExit(f"{build} was compiled from other sources.")
    for name, function in list(vars(module).items()):
        if isinstance(function, ctypes._CFuncPtr):
            bound = library[function.__name__]
            bound.restype, bound.argtypes = function.restype, function.argtypes
            setattr(module, name, bound)
    return module


def cases(folder: Path, entries: int = ENTRIES, side: int = SIDE) -> dict[str, Case]:
    """Return every kernel with inputs of so many entries, and matrices of so many rows."""
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(EXPERTS, entries, generator=generator) * 1e-3
    tensors[:, ::7] = 0.0
    tensors[1, ::11] = -0.0
    tensors[2, ::2] = tensors[1, ::2]
    rows = {**_entrywise(tensors), **_reading(tensors, folder)}
    return {**rows, **_matrices(side, generator), **_tridiagonal(side, generator)}


def _entrywise(tensors: torch.Tensor) -> dict[str, Case]:
    count, entries = tensors.shape
    one, rows = torch.empty(entries), torch.empty(count, entries)
    ranked = tensors[0].abs()
    lows, highs, tops = [1e-5] * count, [2e-3] * count, [4e-6] * count
    combination = binding.Combination(WEIGHTS[1:], [0.3, 1.0], subtracted=True)
    copying = binding.Combination(WEIGHTS, subtracted=False, copy_equal=True)

    def writes(out: Any, name: str, *arguments: Any, **options: Any) -> Case:
        """Return the call of a kernel that writes `out` anew."""
        return Case(lambda native: (getattr(native, name)(*arguments, **options), out))

    def adds(out: Any, name: str, *arguments: Any, **options: Any) -> Case:
        """Return the call of a kernel that adds to `out`."""

        def call(native: Any) -> Sequence[Any]:
            out[...] = 0
            return getattr(native, name)(*arguments, **options), out

        return Case(call)

    def cleared(native: Any) -> Sequence[Any]:
        one.copy_(tensors[1])
        native.clear_below(one, ranked, 5e-4)
        return (one,)

    gram, energies = np.zeros((count, count)), torch.zeros(count, dtype=torch.float64)
    counts = {key: np.zeros(size, np.int64) for key, size in binding.BUCKETS.items()}
    two, cuts, bands = rows[:2], [5e-4] * count, [(1e-4, 1e-3)] * count
    return {
        "all_finite": Case(lambda native: (native.all_finite(tensors[0]),)),
        "add_scaled": writes(two, "add_scaled", tensors[0], [0.3, 1.0], tensors[1], two),
        "combine_rows": writes(two, "combine_rows", tensors, 0, combination, two),
        "combine_rows, equal": writes(rows[:1], "combine_rows", tensors, 0, copying, rows[:1]),
        "weighted_sum": writes(one, "weighted_sum", tensors, WEIGHTS, one),
        "add_inner_products": adds(gram, "add_inner_products", tensors, gram),
        "elected_sum": writes(
            one, "elected_sum", tensors, WEIGHTS, cuts, one, weighted_votes=True, normalize=True
        ),
        "banded_sum": writes(one, "banded_sum", tensors, WEIGHTS, bands, one),
        "spread": writes(one, "spread", tensors, one),
        "add_energies": adds(energies, "add_energies", tensors, ranked, 5e-4, energies),
        "clear_below": Case(cleared),
        "competition_scores": writes(rows, "competition_scores", tensors, lows, highs, True, rows),
        "competition_mean": writes(
            one, "competition_mean", tensors, lows, highs, True, [1e-9] * count, tops, 1e-12, one
        ),
        "count_buckets": adds(
            counts[False], "count_buckets", tensors[0], counts[False], magnitudes=False
        ),
        "count_buckets, magnitudes": adds(
            counts[True], "count_buckets", tensors[0], counts[True], magnitudes=True
        ),
        "find_between": Case(
            lambda native: (native.find_between(tensors[0], 9e-4, 1e-3, magnitudes=True),)
        ),
    }


def _reading(tensors: torch.Tensor, folder: Path) -> dict[str, Case]:
    count, entries = tensors.shape
    rows, two = torch.empty(count, entries), torch.empty(2, entries)
    combination = binding.Combination(WEIGHTS[1:], [0.3, 1.0], subtracted=True)

    def reading(dtype: torch.dtype) -> tuple[Case, Case]:
        path = folder / str(dtype)
        path.write_bytes(tensors.to(dtype).view(torch.uint8).numpy().tobytes())
        size = dtype.itemsize
        descriptor = os.open(path, os.O_RDONLY)
        places = [(descriptor, dtype, i * entries * size) for i in range(count)]

        def combine(native: Any) -> Sequence[Any]:
            sources, gram = native.Sources(places, subtract=True), np.zeros((count - 1, count - 1))
            return sources.combine(0, combination, two, gram), two, gram

        def read(native: Any) -> Sequence[Any]:
            return native.Sources(places, subtract=False).read(0, rows), rows

        return Case(read), Case(combine)

    found: dict[str, Case] = {}
    for dtype in binding._STORED:
        name = str(dtype).removeprefix("torch.")
        found[f"read {name}"], found[f"combine {name}"] = reading(dtype)
    return found


def _matrices(side: int, generator: torch.Generator) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for dtype in (torch.float32, torch.float64):
        square = torch.randn(side, side, generator=generator, dtype=dtype)
        out, name = torch.empty(side, side, dtype=dtype), str(dtype).removeprefix("torch.")

        def product(native: Any, square: Any = square, out: Any = out, **options: Any) -> Any:
            native.multiply(square, square.T, out, precision=out.dtype, **options)
            return (out.triu(),)

        def mirror(native: Any, square: Any = square) -> Sequence[Any]:
            native.mirror(square)
            return (square,)

        found[f"multiply {name}"] = Case(product, exact=False)
        found[f"multiply {name}, upper"] = Case(
            lambda native, product=product: product(native, upper=True), exact=False
        )
        found[f"mirror {name}"] = Case(mirror)
    narrow, wide = torch.randn(side, side, generator=generator), torch.empty(side, side).double()

    def widened(native: Any) -> Sequence[Any]:
        native.multiply(narrow.T, narrow, wide, precision=torch.float64)
        return (wide,)

    found["multiply float32 as float64"] = Case(widened, exact=False)
    return found


def _tridiagonal(side: int, generator: torch.Generator) -> dict[str, Case]:
    root = torch.randn(side, side, generator=generator, dtype=torch.float64)
    matrix = root.T @ root
    form = binding.TridiagonalForm.of(matrix)
    values = binding.eigenvalues([form])[0].flip(0)[: side // 2].contiguous()
    vectors = torch.empty(len(values), side + 8, dtype=torch.float64)
    beside = form.off_diagonal[: side - 1]
    fixed = torch.randn(len(values), side + 8, generator=generator, dtype=torch.float64)

    def reduced(native: Any) -> Sequence[Any]:
        made = native.TridiagonalForm.of(matrix)
        return made.diagonal, made.off_diagonal[:-1]

    def transformed(native: Any) -> Sequence[Any]:
        arrays = (form.reflections, form.diagonal, form.off_diagonal, form.scales)
        vectors.copy_(fixed)
        native.TridiagonalForm(*arrays).back_transform(vectors)
        return (vectors[:, :side].clone(),)

    def found_vectors(native: Any) -> Sequence[Any]:
        native.eigenvectors(form.diagonal, beside, values, vectors)
        return (vectors[:, :side].clone(),)

    return {
        "tridiagonal form": Case(reduced, exact=False),
        "back_transform": Case(transformed, exact=False),
        "eigenvalues of 1": Case(lambda native: (native.eigenvalues([form]),)),
        "eigenvalues of 4": Case(lambda native: (native.eigenvalues([form] * 4),)),
        "eigenvectors": Case(found_vectors),
        "largest_overlap": Case(
            lambda native: (native.largest_overlap(fixed, values, side, float("inf")),)
        ),
    }


def bits(results: Sequence[Any]) -> list[bytes | Any]:
    """Return results as what can be compared to the bit."""
    arrays = (r.numpy() if isinstance(r, torch.Tensor) else r for r in results)
    return [a.tobytes() if isinstance(a, np.ndarray) else a for a in arrays]


def seconds(case: Case, modules: Sequence[Any], repeats: int) -> list[float]:
    """Return the shortest time that a call takes with each module, taken in turn."""
    best = [float("inf")] * len(modules)
    for _ in range(repeats):
        for number, module in enumerate(modules):
            begun = time.perf_counter()
            case.call(module)
            best[number] = min(best[number], time.perf_counter() - begun)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("builds", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    builds = arguments.builds or binding.builds()[:2]
    if len(builds) != 2:
        parser.error("Two builds are compared: name them.")
    torch.set_num_threads(1)
    modules = [bound_to(build) for build in builds]
    print("Milliseconds of", " and of ".join(map(str, builds)), "with the ratio of these.")
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases(Path(folder)).items():
            one, other = (bits(case.call(module)) for module in modules)
            first, second = seconds(case, modules, arguments.repeats)
            differs = " DIFFERS" if case.exact and one != other else ""
            print(
                f"{name:30} {first * 1e3:8.3f} {second * 1e3:8.3f} {second / first:6.2f}{differs}"
            )


if __name__ == "__main__":
    main()
