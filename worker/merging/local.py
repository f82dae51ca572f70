"""Merges in the process, without the service: what `afluente merge` does."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from app.contract.errors import ConflictError, StorageError
from app.contract.recipe import Recipe, parse_request
from app.contract.settings import Settings
from app.planning.devices import prefers_gpu
from app.services.preparation import Prepared, prepare, source_policy
from app.sources.blobs import BlobCache
from app.sources.completion import borrowed, companions_of, copied_names
from app.sources.fetch import LocalCheckpoint, fetch
from app.sources.policy import SourcePolicy
from worker.conversion import check_converters, write_formats
from worker.loadable import check_loadable
from worker.merging.engine.job import Job, Observer, Outcome
from worker.merging.engine.run import run
from worker.merging.engine.statistics import Gathered
from worker.merging.memory import available_bytes

Progress = Callable[[int, int, str], None]
Gather = Callable[
    [Sequence[Recipe], Prepared, list[LocalCheckpoint], SourcePolicy, Progress],
    tuple[Gathered, list[dict[str, str]]],
]
"""Returns what recipes' methods need of their calibration sets, and warnings."""


@dataclass(frozen=True)
class LocalMerge:
    """A finished folder: its files with size and sha256, and what the merge had to say."""

    folder: Path
    files: tuple[dict[str, Any], ...]
    warnings: tuple[dict[str, str], ...]
    sources: dict[str, Any]


def merge_recipe(
    document: Mapping[str, Any],
    output: Path,
    settings: Settings,
    progress: Progress = lambda done, total, unit: None,
    gather: Gather | None = None,
) -> LocalMerge:
    """Merge as the recipe (the body of `POST /merges`) says and put the artifact into `output`.

    `output` must not exist, or be empty; it appears whole or not at all. `progress` is called
    with (done, total, unit). `gather` is asked if a method needs calibration sets. Raises
    AfluenteError.
    """
    refuse_taken(output)
    parsed = parse_request(document, max_checkpoints=settings.max_checkpoints)
    policy = source_policy(settings, None, any_path=True)
    prepared = prepare(parsed.recipe, policy)
    locals_ = fetch_all(prepared, policy, lambda done, total: progress(done, total, "bytes"))
    check_reference(prepared, locals_, policy)
    also = prepared.recipe.output.also
    check_converters(also)
    with scratch_beside(output) as scratch:
        gathered, said = gathered_by(gather, [parsed.recipe], prepared, locals_, policy, progress)
        job = make_job(prepared, locals_, scratch, settings, statistics=gathered)
        observer = Observer(progress=lambda done, total: progress(done, total, "tensors"))
        outcome = run(job, observer)
        write_formats(outcome.folder, also)
        files = describe_files(outcome.folder)
        move(outcome.folder, output)
    sources = prepared.sources([local.sha256 for local in locals_])
    warnings = (*all_warnings(prepared, locals_, outcome), *said)
    return LocalMerge(output, files, warnings, sources)


def gathered_by(
    gather: Gather | None,
    recipes: Sequence[Recipe],
    prepared: Prepared,
    locals_: list[LocalCheckpoint],
    policy: SourcePolicy,
    progress: Progress,
) -> tuple[Gathered, list[dict[str, str]]]:
    """Return what was gathered for merges of the same inputs, and warnings; nothing if none needs.

    ValueError if some need it and there is no `gather`.
    """
    if recipes[0].calibration is None:
        return {}, []
    if gather is None:
        raise ValueError("These methods need calibration sets: pass `gather`.")
    return gather(recipes, prepared, locals_, policy, progress)


def refuse_taken(output: Path) -> None:
    """Raise ConflictError if there is something at `output`."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConflictError(f"{output} exists and is not empty; name a new folder.", param="output")


@contextmanager
def scratch_beside(output: Path) -> Iterator[Path]:
    """Give the path of a folder for what is not finished; it is gone afterwards."""
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_name(f".{output.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def move(finished: Path, output: Path) -> None:
    """Put a finished folder at `output`, which is not there or an empty folder."""
    for path in finished.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    if output.exists():
        output.rmdir()
    finished.rename(output)


def fetch_all(
    prepared: Prepared,
    policy: SourcePolicy,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[LocalCheckpoint]:
    """Return every source, local and with digests, the base first; progress counts bytes."""
    total = sum(checkpoint.size_bytes for checkpoint in prepared.all)
    before = 0
    fetched: list[LocalCheckpoint] = []
    for checkpoint in prepared.all:
        start = before

        def advance(done: int, _: int, start: int = start) -> None:
            if progress is not None:
                progress(start + done, total)

        local = fetch(checkpoint, policy, progress=advance, should_stop=should_stop)
        fetched.append(replace(local, base=fetched[0]) if checkpoint.needs_base else local)
        before += checkpoint.size_bytes
    return fetched


def check_reference(
    prepared: Prepared, locals_: Sequence[LocalCheckpoint], policy: SourcePolicy
) -> None:
    """Have transformers load what the artifact takes from its inputs, before any tensor is read.

    What it has loaded once is not loaded again. InvalidCheckpointError names the file that fails.
    """
    reference = replace(locals_[0], resolved=prepared.as_written)
    lender = _lender(prepared, locals_)
    made = companions_of(reference.resolved, lender.resolved if lender else None)
    contents = {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    contents |= {name: reference.file_sha256[name] for name in copied_names(reference.resolved)}
    if lender is not None:
        lent = borrowed(reference.resolved, lender.resolved)
        contents |= {n: lender.file_sha256[n] for n in copied_names(lender.resolved) if n in lent}
    key = f"loadable:{version('transformers')}:{version('tokenizers')}:{sorted(contents.items())}"
    store = BlobCache(policy).digests
    if store.get(key) is not None:
        return
    with reference.opened(lender) as folder:
        check_loadable(folder, reference.resolved.uri)
    # Where the cache cannot be written it is only loaded again.
    with suppress(OSError, StorageError):
        store.put(key, reference.sha256)


def _lender(prepared: Prepared, locals_: Sequence[LocalCheckpoint]) -> LocalCheckpoint | None:
    """Return the expert whose tokenizer the artifact has; None if it has the reference's."""
    experts = locals_[1:] if prepared.base else locals_
    return experts[prepared.growth.lender] if prepared.growth else None


def make_job(
    prepared: Prepared,
    locals_: list[LocalCheckpoint],
    folder: Path,
    settings: Settings,
    previous: tuple[Path, ...] = (),
    statistics: Gathered | None = None,
) -> Job:
    """Return the engine's job for prepared, local sources."""
    names = [source.name for source in prepared.recipe.checkpoints]
    labels = [f"{name} ({found.uri})" for name, found in zip(names, prepared.experts, strict=True)]
    if prepared.base is not None:
        labels.insert(0, f"base ({prepared.base.uri})")
    return Job(
        recipe=prepared.recipe,
        plan=prepared.plan,
        checked=prepared.checked,
        base=locals_[0] if prepared.base else None,
        experts=tuple(locals_[1:] if prepared.base else locals_),
        labels=tuple(labels),
        reference=replace(locals_[0], resolved=prepared.as_written),
        lender=_lender(prepared, locals_),
        growth=prepared.growth,
        folder=folder,
        previous=previous,
        device=_merge_device(settings, prepared),
        threads=threads_of(settings),
        memory_bytes=working_memory(settings),
        statistics=statistics or {},
        store_folder=settings.data / "reductions",
        store_bytes=settings.reductions_bytes,
    )


def threads_of(settings: Settings) -> int:
    """Return the number of threads that merge; if not set, of the cores this process may use."""
    return settings.threads or len(os.sched_getaffinity(0))


def working_memory(settings: Settings) -> int:
    """Return the bytes for tensors merged at once; if not set, half of what is available."""
    return settings.memory_bytes or available_bytes() // 2


def _merge_device(settings: Settings, prepared: Prepared) -> str:
    """Return where to merge; with `auto`, a GPU if it is estimated to be faster than the CPU."""
    device = choose_device(settings.device)
    if settings.device != "auto" or device == "cpu":
        return device
    measured = settings.gpu_eigh_seconds
    faster = prefers_gpu(prepared.plan, len(prepared.experts), threads_of(settings), measured)
    return device if faster else "cpu"


def choose_device(setting: str) -> str:
    """Return the device that a setting means; `auto` is a GPU if there is one."""
    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return setting


def describe_files(folder: Path) -> tuple[dict[str, Any], ...]:
    """Return name, bytes, sha256 and media type of every file of a finished folder.

    The name of a file in a folder inside it has a slash.
    """
    return tuple(_describe(path, folder) for path in sorted(folder.rglob("*")) if path.is_file())


def all_warnings(
    prepared: Prepared, locals_: list[LocalCheckpoint], outcome: Outcome
) -> tuple[dict[str, str], ...]:
    """Return the warnings of the plan, of the inputs' digests and of the methods."""
    warnings = list(prepared.warnings)
    names = [source.name for source in prepared.recipe.checkpoints]
    digests = [local.sha256 for local in locals_]
    base = digests.pop(0) if prepared.base is not None else None
    unlearnt = [name for name, digest in zip(names, digests, strict=True) if digest == base]
    if unlearnt:
        message = f"Equal to the base, so nothing was learnt in: {', '.join(unlearnt)}."
        warnings.append({"code": "zero_task_vector", "message": message})
    twins = [n for n, d in zip(names, digests, strict=True) if digests.count(d) > 1]
    if twins:
        message = f"The same checkpoint, to the byte: {', '.join(twins)}."
        warnings.append({"code": "identical_checkpoints", "message": message})
    return (*warnings, *outcome.warnings)


def _describe(path: Path, folder: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    media = "application/json" if path.suffix == ".json" else "application/octet-stream"
    if path.suffix == ".txt":
        media = "text/plain; charset=utf-8"
    size = path.stat().st_size
    name = path.relative_to(folder).as_posix()
    return {"name": name, "bytes": size, "sha256": digest, "media_type": media}
