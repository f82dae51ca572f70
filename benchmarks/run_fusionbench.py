"""Child, in FusionBench's environment: its spectral merges, files to file.

Its own pipeline makes whole models of the files. Here they are read and written by safetensors as
quickly as can be, so that what is compared is the merging. Its package imports Lightning, Hydra and
more on the way to the two files that hold the algorithms; only those two are loaded.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
import types
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.measure import report, timed


def main() -> None:
    """Merge once; imports are not counted, and the functions alone are told apart."""
    method, threads, output, base, *experts = sys.argv[1:]
    torch.set_num_threads(int(threads))
    folder = Path(output)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    merge = {"tsv_m": _tsv_m, "iso_c": _iso_c, "iso_cts": _iso_cts}[method]()
    in_memory = 0.0

    def work() -> None:
        nonlocal in_memory
        pretrained = load_file(f"{base}/model.safetensors")
        vectors = []
        for expert in experts:
            loaded = load_file(f"{expert}/model.safetensors")
            # In place, each page would be copied from the file first: ten times as slow.
            vectors.append({name: loaded.pop(name) - x for name, x in pretrained.items()})
        begun = time.perf_counter()
        merged = merge(vectors)
        in_memory = time.perf_counter() - begun
        save_file({n: x + merged[n] for n, x in pretrained.items()}, folder / "out.safetensors")

    with torch.no_grad():
        seconds = timed(work)
    report(seconds, in_memory=in_memory)


def _tsv_m():
    module = _load("method/task_singular_vector/utils/TSVM_utils.py")
    return lambda vectors: module.compute_and_sum_svd_mem_reduction(vectors, accelerator="cpu")


def _iso_c():
    module = _load("method/isotropic_merging/iso_utils.py")
    return lambda vectors: module.iso_c(vectors, accelerator="cpu")


def _iso_cts():
    module = _load("method/isotropic_merging/iso_utils.py")
    return lambda vectors: module.iso_cts(vectors, common_space_fraction=0.8, accelerator="cpu")


def _load(path: str) -> types.ModuleType:
    root = Path(importlib.util.find_spec("fusion_bench").origin).parent
    for name, folder in (("fusion_bench", root), ("fusion_bench.utils", root / "utils")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    sys.modules["fusion_bench.utils"].timeit_context = lambda *_: nullcontext()
    spec = importlib.util.spec_from_file_location("peer", root / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
