"""The merge job: resolve, fetch, merge, publish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.contract.errors import SourceChangedError, StorageError
from app.contract.recipe import Recipe
from app.contract.states import Phase
from app.services.preparation import Prepared, prepare, source_policy
from app.sources.blobs import BlobCache
from app.sources.datasets import read_dataset
from app.sources.digests import remember
from app.sources.fetch import LocalCheckpoint
from app.sources.policy import SourcePolicy
from app.storage import evaluations, merges
from app.storage.database import writing
from app.storage.leases import JobKind, LeaseLostError, finish, mark_sent
from worker.attempts import Attempt
from worker.calibration.gather import Calibration
from worker.conversion import check_converters, write_formats
from worker.evaluation.disjoint import refuse_shared
from worker.merging.engine.job import Observer
from worker.merging.engine.run import run
from worker.merging.local import all_warnings, check_reference, describe_files, fetch_all, make_job


def do_merge(attempt: Attempt) -> None:
    """Run the merge of the attempt's lease and publish its artifact."""
    engine, lease = attempt.engine, attempt.lease
    row = merges.get(engine, lease.id)
    if row is None:
        raise LeaseLostError(lease.id)
    recipe = Recipe.model_validate(row["recipe"])
    policy = source_policy(attempt.settings, engine)
    _phase(attempt, Phase.RESOLVING)
    prepared = prepare(
        recipe, policy, pinned=[str(source["resolved"]) for source in _flat(row["sources"])]
    )
    _phase(attempt, Phase.DOWNLOADING, "bytes", sum(c.size_bytes for c in prepared.all))
    locals_ = fetch_all(
        prepared, policy, _progress(attempt, "bytes"), attempt.keeper.stopping.is_set
    )
    sources = prepared.sources([local.sha256 for local in locals_])
    _record_sources(attempt, row["sources"], sources)
    check_reference(prepared, locals_, policy)
    check_converters(recipe.output.also)
    calibration = _calibration(attempt, row["request"], prepared, locals_, policy)
    statistics = None
    if calibration is not None:
        _phase(attempt, Phase.CALIBRATING, "utterances")
        statistics = calibration.gather(recipe)
    _phase(attempt, Phase.MERGING, "tensors", len(prepared.plan.steps))
    folder = attempt.store.attempt_folder(lease.id, lease.fence)
    previous = _previous(attempt, row["continues"], sources)
    job = make_job(prepared, locals_, folder, attempt.settings, previous, statistics)
    observer = Observer(_tensor_progress(attempt), attempt.keeper.stopping)
    outcome = run(job, observer)
    warnings = all_warnings(prepared, locals_, outcome)
    warnings += tuple(calibration.warnings if calibration else ())
    attempt.retried(lambda: merges.set_warnings(engine, lease, warnings))
    if recipe.output.also:
        _phase(attempt, Phase.CONVERTING)
        write_formats(outcome.folder, recipe.output.also, observer.check)
    _phase(attempt, Phase.PUBLISHING)
    published, files = _publish(attempt, outcome.folder, row["request"])
    _remember(policy, published, files)


def _calibration(
    attempt: Attempt,
    request: Mapping[str, Any],
    prepared: Prepared,
    locals_: Sequence[LocalCheckpoint],
    policy: SourcePolicy,
) -> Calibration | None:
    """Return the recipe's calibration sets, if it has any.

    InvalidManifestError if the requested evaluation would test on one of their recordings.
    """
    spec = prepared.recipe.calibration
    if spec is None:
        return None
    stopping = attempt.keeper.stopping.is_set
    progress = _progress(attempt, "utterances")
    found = Calibration(spec, prepared, locals_, attempt.settings, policy, stopping, progress)
    wanted = request.get("evaluation") or {"datasets": ()}
    tested = {
        one["name"]: read_dataset(one["uri"], policy, param=one["name"], should_stop=stopping)
        for one in wanted["datasets"]
    }
    refuse_shared(
        found.manifests, tested, policy.file_roots, called="Calibration", param="calibration"
    )
    return found


def _phase(
    attempt: Attempt, phase: Phase, unit: str | None = None, total: int | None = None
) -> None:
    def set_phase() -> None:
        merges.set_phase(attempt.engine, attempt.lease, phase.value, unit=unit, total=total)

    attempt.retried(set_phase)
    attempt.wake()


def _progress(attempt: Attempt, unit: str) -> Callable[[int, int], None]:
    """Return a function that records progress in this unit."""

    def report(done: int, total: int) -> None:
        merges.set_progress(attempt.engine, attempt.lease, done, total, unit)

    return attempt.throttled(report)


def _tensor_progress(attempt: Attempt) -> Callable[[int, int], None]:
    """Return a function that records finished tensors, and first deletes earlier attempts' folders.

    By then this attempt has adopted their finished tensors. So a merge never needs more disk space
    than one attempt.
    """
    report, is_first = _progress(attempt, "tensors"), True

    def progress(done: int, total: int) -> None:
        nonlocal is_first
        report(done, total)
        if is_first:
            is_first = False
            attempt.store.remove_attempts_before(attempt.lease.id, attempt.lease.fence)

    return progress


def _flat(sources: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records of the base, if there is one, and of the checkpoints."""
    base = [sources["base"]] if sources["base"] else []
    return [*base, *sources["checkpoints"]]


def _record_sources(
    attempt: Attempt, recorded: Mapping[str, Any], sources: Mapping[str, Any]
) -> None:
    """Record the digests; SourceChangedError if an earlier attempt read other bytes.

    Finished tensors are adopted, so they must come from the same inputs.
    """
    for old, new in zip(_flat(recorded), _flat(sources), strict=True):
        if old["sha256"] not in {None, new["sha256"]}:
            raise SourceChangedError(
                f"{new['name']} ({old['uri']}) changed since the merge began; submit the merge "
                "again to use the new version."
            )
    attempt.retried(lambda: merges.set_sources(attempt.engine, attempt.lease, sources))


def _previous(
    attempt: Attempt, continues: str | None, sources: Mapping[str, Any]
) -> tuple[Path, ...]:
    """Return the folders of attempts whose finished tensors may be adopted."""
    lease = attempt.lease
    folders = attempt.store.earlier_attempts(lease.id, lease.fence)
    continued = merges.get(attempt.engine, continues) if continues else None
    if continued is not None and _digests(continued["sources"]) == _digests(sources):
        folders += attempt.store.earlier_attempts(str(continued["id"]))
    return tuple(folders)


def _digests(sources: Mapping[str, Any]) -> list[str | None]:
    return [source["sha256"] for source in _flat(sources)]


def _publish(
    attempt: Attempt, finished: Path, request: Mapping[str, Any]
) -> tuple[Path, tuple[dict[str, Any], ...]]:
    """Publish the finished folder and queue the requested evaluation, in one transaction.

    Returns the published folder and its files.
    """
    lease, store = attempt.lease, attempt.store
    files = describe_files(finished)
    name = store.publish(lease.id, lease.fence, finished)

    def commit() -> str | None:
        with writing(attempt.engine) as connection:
            wanted = request.get("evaluation")
            queued = evaluations.create(connection, lease.id, wanted) if wanted else None
            values = {"artifact_folder": name, "artifacts": list(files), "phase": None}
            finish(connection, lease, "succeeded", values)
            return queued

    evaluation_id = None
    try:
        evaluation_id = attempt.retried(commit)
    except LeaseLostError:
        row = merges.get(attempt.engine, lease.id)
        # If the row has the folder, only the response was lost; the sweeper sends the evaluation.
        if row is None or row["artifact_folder"] != name:
            store.remove_published(name)
            raise
    store.remove_scratch(lease.id)
    if evaluation_id is not None and attempt.queue.send(JobKind.EVALUATION, evaluation_id):
        mark_sent(attempt.engine, JobKind.EVALUATION, evaluation_id)
    return store.published_folder(name), files


def _remember(policy: SourcePolicy, folder: Path, files: Iterable[Mapping[str, Any]]) -> None:
    """Store the digests of the published files, so that evaluations need not hash them."""
    digests = BlobCache(policy).digests
    with suppress(OSError, StorageError):  # only an optimisation
        for file in files:
            remember(folder.resolve() / file["name"], file["sha256"], digests)
