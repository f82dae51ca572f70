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

from app.contract.errors import InvalidCheckpointError
from app.contract.tensors import DTYPE_NAMES
from app.planning.layout import INDEX_FILE, index_document
from app.sources import generation
from app.sources.layout import COMPANIONS

if TYPE_CHECKING:
    from app.sources.fetch import LocalCheckpoint
    from worker.merging.engine.run import Job

_CONFIG, _GENERATION, _TOKENIZER_CONFIG, _PROCESSOR, _PREPROCESSOR = (
    "config.json",
    generation.FILE,
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
# The rest of what a checkpoint has besides tensors goes over as it is.
_COPIED = tuple(
    name
    for name in COMPANIONS
    if name not in {_CONFIG, _GENERATION, _TOKENIZER_CONFIG, _PROCESSOR, _PREPROCESSOR}
)
_FEATURE_EXTRACTOR = "feature_extractor"


class Companions:
    """The files of an artifact besides tensors; those that are made from others are read first.

    A damaged one is refused before anything is merged: InvalidCheckpointError names it.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reference = job.all[0]
        self._read = {
            name: _load(job.labels[0], name, self._reference)
            for name in (_GENERATION, _TOKENIZER_CONFIG, _PROCESSOR, _PREPROCESSOR)
            if name in self._reference.paths
        }

    def write(self, folder: Path, diagnostics: Mapping[str, Any]) -> None:
        """Write them all into `folder`."""
        job = self._job
        if len(job.plan.files) > 1:
            _dump(folder / INDEX_FILE, index_document(job.plan.files))
        _dump(folder / _CONFIG, _config(job.all[0].resolved.config, _dtype(job)))
        if _GENERATION in self._read:
            config = job.all[0].resolved.config
            kept = generation.generation_config_of(self._read[_GENERATION], config)
            _dump(folder / _GENERATION, kept)
        for name in _COPIED:
            self._copy(name, folder)
        self._write_tokenizer_config(folder)
        self._write_processor(folder)
        _dump(folder / "recipe.json", recipe_document(job))
        _dump(folder / "diagnostics.json", diagnostics)

    def _copy(self, name: str, folder: Path) -> None:
        if name in self._reference.paths:
            with self._reference.open(name) as source, (folder / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)

    def _write_tokenizer_config(self, folder: Path) -> None:
        """Write the tokenizer's configuration in the form that transformers 4 and 5 both read."""
        config = self._read.get(_TOKENIZER_CONFIG, {})
        extra = config.get("extra_special_tokens")
        if not isinstance(extra, list):
            self._copy(_TOKENIZER_CONFIG, folder)
            return
        # transformers 5 writes a list here, on which 4 fails; the older name serves both.
        kept = {key: value for key, value in config.items() if key != "extra_special_tokens"}
        _dump(folder / _TOKENIZER_CONFIG, {"additional_special_tokens": extra, **kept})

    def _write_processor(self, folder: Path) -> None:
        """Write both forms of the processor's configuration, the one made from the other."""
        processor, extractor = self._read.get(_PROCESSOR), self._read.get(_PREPROCESSOR)
        if extractor is None and processor is not None:
            nested = processor.get(_FEATURE_EXTRACTOR)
            if isinstance(nested, Mapping):
                extractor = {"processor_class": "WhisperProcessor", **nested}
        if processor is None and extractor is not None:
            processor = {_FEATURE_EXTRACTOR: extractor, "processor_class": "WhisperProcessor"}
        for name, document in ((_PROCESSOR, processor), (_PREPROCESSOR, extractor)):
            if name in self._reference.paths:
                self._copy(name, folder)
            elif document is not None:
                _dump(folder / name, document)


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


def _load(label: str, name: str, checkpoint: LocalCheckpoint) -> dict[str, Any]:
    try:
        with checkpoint.open(name) as stream:
            document = json.loads(stream.read())
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidCheckpointError(
            f"{label}: {name} is not a JSON object; save the checkpoint again."
        )
    return document


def _dump(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="ascii")
