"""Writes what an artifact has besides tensors: config, tokenizer, processor, recipe, diagnostics.

Only the recipe and the inputs decide these bytes: no time, host, path or identifier is in them.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.contract.tensors import DTYPE_NAMES
from app.planning.layout import INDEX_FILE, index_document
from app.sources.layout import COMPANIONS

if TYPE_CHECKING:
    from worker.merging.engine.run import Job

_CONFIG, _TOKENIZER_CONFIG, _PROCESSOR, _PREPROCESSOR = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
# The rest of what a checkpoint has besides tensors goes over as it is.
_COPIED = tuple(
    name
    for name in COMPANIONS
    if name not in {_CONFIG, _TOKENIZER_CONFIG, _PROCESSOR, _PREPROCESSOR}
)
_FEATURE_EXTRACTOR = "feature_extractor"


def write_companions(job: Job, folder: Path, diagnostics: Mapping[str, Any]) -> None:
    """Write every file of the artifact that is not safetensors into `folder`."""
    reference = job.all[0]
    if len(job.plan.files) > 1:
        _dump(folder / INDEX_FILE, index_document(job.plan.files))
    _dump(folder / _CONFIG, _config(reference.resolved.config, _dtype(job)))
    for name in _COPIED:
        if name in reference.paths:
            shutil.copyfile(reference.paths[name], folder / name)
    _write_tokenizer_config(reference.paths, folder)
    _write_processor(reference.paths, folder)
    _dump(folder / "recipe.json", recipe_document(job))
    _dump(folder / "diagnostics.json", diagnostics)


def recipe_document(job: Job) -> dict[str, Any]:
    """Return what made the artifact: the recipe, the inputs' digests, torch's build, the device."""
    recipe = job.recipe
    sources: list[dict[str, Any]] = [
        {"name": name, "resolved": _public(local.resolved.resolved), "sha256": local.sha256}
        for name, local in zip(_names(job), job.all, strict=True)
    ]
    sources = [{k: v for k, v in source.items() if v is not None} for source in sources]
    base = sources.pop(0) if job.base else None
    for source, named in zip(sources, recipe.checkpoints, strict=True):
        source["weight"] = named.weight
    return {
        "base": base,
        "checkpoints": sources,
        "method": recipe.method,
        "parameters": recipe.parameters,
        "rules": [rule.model_dump(mode="json") for rule in recipe.rules],
        "seed": recipe.seed,
        "output": recipe.output.model_dump(mode="json"),
        "torch": torch.__version__,
        "device": torch.device(job.device).type,
    }


def _names(job: Job) -> list[str]:
    return [*(["base"] if job.base else []), *(source.name for source in job.recipe.checkpoints)]


def _public(resolved: str) -> str | None:
    # A path says where a checkpoint was, not which one it was: its digest does.
    return resolved if resolved.startswith(("hf://", "https://")) else None


def _dtype(job: Job) -> str:
    """Return the dtype of most of the artifact's entries, by torch's name."""
    entries: Counter[str] = Counter()
    for step in job.plan.steps:
        if step.target.is_float:
            entries[step.target.dtype] += step.target.numel
    names = {stored: name for name, stored in DTYPE_NAMES.items()}
    return names[entries.most_common(1)[0][0]]


def _config(reference: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    config = {key: value for key, value in reference.items() if not key.startswith("_")}
    # transformers 5 reads `dtype`, 4 reads `torch_dtype`.
    return config | {"dtype": dtype, "torch_dtype": dtype}


def _write_tokenizer_config(paths: Mapping[str, Path], folder: Path) -> None:
    """Write the tokenizer's configuration in the form that transformers 4 and 5 both read."""
    config = _load(paths.get(_TOKENIZER_CONFIG))
    if config is None:
        return
    extra = config.get("extra_special_tokens")
    if not isinstance(extra, list):
        shutil.copyfile(paths[_TOKENIZER_CONFIG], folder / _TOKENIZER_CONFIG)
        return
    # transformers 5 writes a list here, on which 4 fails; the older name serves both.
    del config["extra_special_tokens"]
    config.setdefault("additional_special_tokens", extra)
    _dump(folder / _TOKENIZER_CONFIG, config)


def _write_processor(paths: Mapping[str, Path], folder: Path) -> None:
    """Write both forms of the processor's configuration, each made from the other if need be."""
    processor = _load(paths.get(_PROCESSOR))
    extractor = _load(paths.get(_PREPROCESSOR))
    if extractor is None and processor is not None:
        nested = processor.get(_FEATURE_EXTRACTOR)
        extractor = dict(nested) if isinstance(nested, Mapping) else None
        if extractor is not None:
            extractor.setdefault("processor_class", "WhisperProcessor")
    if processor is None and extractor is not None:
        processor = {_FEATURE_EXTRACTOR: extractor, "processor_class": "WhisperProcessor"}
    for name, document in ((_PROCESSOR, processor), (_PREPROCESSOR, extractor)):
        if name in paths:
            shutil.copyfile(paths[name], folder / name)
        elif document is not None:
            _dump(folder / name, document)


def _load(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    document = json.loads(path.read_text("utf-8"))
    return document if isinstance(document, dict) else None


def _dump(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False, sort_keys=False)
    path.write_text(text + "\n", encoding="utf-8")
