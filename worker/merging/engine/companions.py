"""Writes what an artifact has besides tensors: config, tokenizer, processor, recipe, diagnostics.

Only the recipe and the inputs decide these bytes: no time, host, path or identifier is in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from app.contract.requests import Rule
from app.contract.tensors import DTYPE_NAMES
from app.planning.layout import INDEX_FILE, index_document
from app.sources.completion import borrowed, companions_of, copied_files, encoded
from app.sources.schemes import published_at
from app.sources.vocabulary import Growth
from worker.merging.engine.adapt import adapter_files
from worker.merging.engine.job import Job


def write_companions(job: Job, folder: Path, diagnostics: Mapping[str, Any]) -> None:
    """Write into `folder` all that an artifact has besides tensors.

    Raises SourceChangedError if a file that is copied is not the one whose digest was taken.
    """
    made = adapter_files(job, job.plan.adapter) if job.plan.adapter else _files_of_model(job)
    made["recipe.json"] = encoded(recipe_document(job))
    made["diagnostics.json"] = encoded(diagnostics)
    for name, content in made.items():
        (folder / name).write_bytes(content)


def _files_of_model(job: Job) -> dict[str, bytes]:
    """Return the config, tokenizer and processor, and the index of sharded weights, by name."""
    reference, lender = job.reference, job.lender
    lent_by = lender.resolved if lender else None
    made = companions_of(reference.resolved, lent_by, dtype=_dtype(job)) | copied_files(reference)
    if lender is not None:
        lent = borrowed(reference.resolved, lender.resolved)
        made |= {name: content for name, content in copied_files(lender).items() if name in lent}
    if len(job.plan.files) > 1:
        made[INDEX_FILE] = encoded(index_document(job.plan.files))
    return made


def recipe_document(job: Job) -> dict[str, Any]:
    """Return what made the artifact: the recipe, the inputs' digests, torch's build, the device."""
    recipe = job.recipe
    sources: list[dict[str, Any]] = [
        {"name": name, "resolved": published_at(local.resolved.resolved), "sha256": local.sha256}
        for name, local in zip(_names(job), job.all, strict=True)
    ]
    sources = [{k: v for k, v in source.items() if v is not None} for source in sources]
    base = sources.pop(0) if job.base else None
    for source, named in zip(sources, recipe.checkpoints, strict=True):
        source["weight"] = named.weight
        if named.form is not None:
            source["form"] = named.form
    grown = {} if job.growth is None else {"vocabulary": _vocabulary_document(job, job.growth)}
    return {
        "base": base,
        "checkpoints": sources,
        "method": recipe.method,
        "parameters": recipe.parameters,
        "rules": [_rule_document(rule) for rule in recipe.rules],
        "seed": recipe.seed,
        "output": recipe.output.model_dump(
            mode="json", exclude=set() if recipe.output.also else {"also"}
        ),
        **_calibration(job),
        **grown,
        "torch": torch.__version__,
        "device": torch.device(job.device).type,
    }


def _calibration(job: Job) -> dict[str, Any]:
    """Return the calibration sets without their places, and the digests of what was gathered."""
    spec = job.recipe.calibration
    if spec is None:
        return {}
    document = spec.model_dump(mode="json", exclude={"datasets": {"__all__": {"uri"}}})
    used = {kind: job.statistics[kind] for kind in sorted(job.recipe.statistics)}
    document["statistics"] = {kind: gathered.sha256 for kind, gathered in used.items()}
    return {"calibration": document}


def _vocabulary_document(job: Job, growth: Growth) -> dict[str, Any]:
    """Return which tokens were added, and by which checkpoints."""
    names = [source.name for source in job.recipe.checkpoints]
    return {
        "reference_size": growth.reference_size,
        "size": growth.size,
        "tokenizer": names[growth.lender],
        "added": [
            {
                "id": row,
                "token": growth.tokens.get(row),
                "from": [names[number] for number in growth.holders(row)],
            }
            for row in range(growth.reference_size, growth.size)
        ],
    }


def _rule_document(rule: Rule) -> dict[str, Any]:
    unused = {"weights"} if rule.weights is None else set()
    return rule.model_dump(mode="json", exclude=unused)


def _names(job: Job) -> list[str]:
    return [*(["base"] if job.base else []), *(source.name for source in job.recipe.checkpoints)]


def _dtype(job: Job) -> str:
    """Return the dtype of most of the artifact's entries, by torch's name."""
    entries: Counter[str] = Counter()
    for step in job.plan.steps:
        if step.target.is_float:
            entries[step.target.dtype] += step.target.numel
    names = {stored: name for name, stored in DTYPE_NAMES.items()}
    return names[entries.most_common(1)[0][0]]
