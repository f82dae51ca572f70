"""mergekit and FusionBench, in environments of their own; run as a script there, merges once.

The environments are made once, under the cache, from PyPI. Both read and write files. mergekit is
run by the function of its command mergekit-pytorch. FusionBench's own pipeline makes whole models
of the files; here they are read and written by safetensors as quickly as can be, so that what is
compared is the merging. Its package imports Lightning, Hydra and more on the way to the two files
that hold the algorithms; only those two are loaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import types
import venv
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

MERGEKIT, FUSION_BENCH = "mergekit==0.1.5", "fusion-bench==0.2.33"
_TORCH = "torch==2.13.0"
# Without a base, as with us. multislerp would take one, but raises on every tensor that the
# experts left as it was, which Whisper always has.
_WITHOUT_BASE = ("linear", "karcher", "multislerp")


def mergekit_python(cache: Path) -> Path:
    """Return the interpreter of an environment with mergekit."""
    return _environment(cache / "mergekit", [[_TORCH], [_TORCH, MERGEKIT]])


def fusion_bench_python(cache: Path) -> Path:
    """Return the interpreter of an environment with FusionBench's own files.

    Without its dependencies: the two files that hold the algorithms need torch alone.
    """
    steps = [[_TORCH, "safetensors", "numpy"], ["--no-deps", FUSION_BENCH]]
    return _environment(cache / "fusion-bench", steps)


def build_python(cache: Path) -> Path:
    """Return the interpreter of an environment that compiles this project."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    return _environment(cache / "build", [project["build-system"]["requires"]])


def _environment(folder: Path, steps: list[list[str]]) -> Path:
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if not done.exists():
        print(f"making {folder} (once)", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        for packages in steps:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        done.touch()
    return python


def write_mergekit_config(
    path: Path, method: str, parameters: str, folders: Sequence[Path]
) -> None:
    """Write mergekit-pytorch's recipe; `each` of the parameters goes to every expert."""
    given = json.loads(parameters)
    base, *experts = [str(folder / "model.safetensors") for folder in folders]
    each = given.pop("each", {})
    config = {
        "merge_method": method,
        "models": [{"model": expert, "parameters": each} for expert in experts],
        "parameters": given,
        "dtype": "float32",
    }
    if method not in _WITHOUT_BASE:
        config["base_model"] = base
    path.write_text(json.dumps(config))


def _mergekit(
    method: str, parameters: str, output: Path, folders: Sequence[Path]
) -> dict[str, float]:
    """Return the seconds of the command's function; imports are not counted."""
    from mergekit.scripts.merge_raw_pytorch import main

    path = output / "recipe.yaml"
    write_mergekit_config(path, method, parameters, folders)
    begun = time.perf_counter()
    main.main([str(path), str(output / "out")], standalone_mode=False)
    return {"seconds": time.perf_counter() - begun}


def _fusion_bench(method: str, _: str, output: Path, folders: Sequence[Path]) -> dict[str, float]:
    """Return the seconds from files to file, and those of the functions alone, in memory."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if method == "tsv_m":
        module = _load("method/task_singular_vector/utils/TSVM_utils.py")
        merge, options = module.compute_and_sum_svd_mem_reduction, {}
    else:
        module = _load("method/isotropic_merging/iso_utils.py")
        merge = getattr(module, method)
        options = {"common_space_fraction": 0.8} if method == "iso_cts" else {}
    with torch.no_grad():
        begun = time.perf_counter()
        pretrained = load_file(folders[0] / "model.safetensors")
        vectors = []
        for expert in folders[1:]:
            loaded = load_file(expert / "model.safetensors")
            # In place, each page would be copied from the file first: ten times as slow.
            vectors.append({name: loaded.pop(name) - x for name, x in pretrained.items()})
        read = time.perf_counter()
        merged = merge(vectors, accelerator="cpu", **options)
        in_memory = time.perf_counter() - read
        save_file({n: x + merged[n] for n, x in pretrained.items()}, output / "out.safetensors")
    return {"seconds": time.perf_counter() - begun, "in_memory": in_memory}


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


def _main() -> None:
    peer, method, parameters, *paths = sys.argv[1:]
    folder, *folders = map(Path, paths)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    merge = {"mergekit": _mergekit, "fusion_bench": _fusion_bench}[peer]
    print(json.dumps(merge(method, parameters, folder, folders)))


if __name__ == "__main__":
    _main()
