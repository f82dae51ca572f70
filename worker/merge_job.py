"""What a worker does for a merge: resolve, fetch, merge, publish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.contract.errors import SourceChangedError, StorageError
from app.contract.recipe import Recipe
from app.contract.states import Phase
from app.services.preparation import prepare, source_policy
from app.sources.blobs import BlobCache
from app.sources.digests import remember
from app.sources.policy import SourcePolicy
from app.storage import evaluations, merges
from app.storage.database import writing
from app.storage.leases import JobKind, LeaseLostError, finish, mark_sent
from worker.attempts import Attempt
from worker.merging.engine.run import Observer, run
from worker.merging.local import all_warnings, check_reference, describe_files, fetch_all, make_job


def do_merge(attempt: Attempt) -> None:
    """Make the merge of the attempt's lease and publish it."""
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
        prepared, policy, _telling(attempt, "bytes"), attempt.keeper.stopping.is_set
    )
    sources = prepared.sources([local.sha256 for local in locals_])
    _record_sources(attempt, row["sources"], sources)
    check_reference(locals_[0], policy)
    _phase(attempt, Phase.MERGING, "tensors", len(prepared.plan.steps))
    folder = attempt.store.attempt_folder(lease.id, lease.fence)
    previous = _previous(attempt, row["continues"], sources)
    job = make_job(prepared, locals_, folder, attempt.settings, previous)
    observer = Observer(_telling_of_tensors(attempt), attempt.keeper.stopping)
    outcome = run(job, observer)
    warnings = all_warnings(prepared, locals_, outcome)
    attempt.patiently(lambda: merges.set_warnings(engine, lease, warnings))
    _phase(attempt, Phase.PUBLISHING)
    published, files = _publish(attempt, outcome.folder, row["request"])
    _remember(policy, published, files)


def _phase(
    attempt: Attempt, phase: Phase, unit: str | None = None, total: int | None = None
) -> None:
    def tell() -> None:
        merges.set_phase(attempt.engine, attempt.lease, phase.value, unit=unit, total=total)

    attempt.patiently(tell)
    attempt.wake()


def _telling(attempt: Attempt, unit: str) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        merges.set_progress(attempt.engine, attempt.lease, done, total, unit)

    return attempt.throttled(tell)


def _telling_of_tensors(attempt: Attempt) -> Callable[[int, int], None]:
    """Return what tells how many tensors are done; earlier attempts' folders go at the first call.

    By then this attempt has taken over what is finished in them: however often a merge loses its
    worker, it takes the room of one attempt.
    """
    tell, told = _telling(attempt, "tensors"), False

    def progress(done: int, total: int) -> None:
        nonlocal told
        tell(done, total)
        if not told:
            told = True
            attempt.store.remove_attempts_before(attempt.lease.id, attempt.lease.fence)

    return progress


def _flat(sources: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records of the base, if there is one, and of the checkpoints."""
    base = [sources["base"]] if sources["base"] else []
    return [*base, *sources["checkpoints"]]


def _record_sources(
    attempt: Attempt, recorded: Mapping[str, Any], sources: Mapping[str, Any]
) -> None:
    """Record the digests, or refuse if an earlier attempt read other bytes.

    What it finished is taken over, and must have come from the same inputs.
    """
    for old, new in zip(_flat(recorded), _flat(sources), strict=True):
        if old["sha256"] not in {None, new["sha256"]}:
            raise SourceChangedError(
                f"{new['name']} ({old['uri']}) changed since the merge began; "
                "send the merge again to use it as it is now."
            )
    attempt.patiently(lambda: merges.set_sources(attempt.engine, attempt.lease, sources))


def _previous(
    attempt: Attempt, continues: str | None, sources: Mapping[str, Any]
) -> tuple[Path, ...]:
    """Return the folders of attempts whose finished tensors may be taken over."""
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
    """Make the finished folder the merge's artifact, in one transaction; queue its evaluation.

    Return where it is now, and its files.
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
        evaluation_id = attempt.patiently(commit)
    except LeaseLostError:
        row = merges.get(attempt.engine, lease.id)
        # Or it was recorded, and only the answer was lost: then the sweeper sends the evaluation.
        if row is None or row["artifact_folder"] != name:
            store.remove_published(name)
            raise
    store.remove_scratch(lease.id)
    if evaluation_id is not None and attempt.queue.send(JobKind.EVALUATION, evaluation_id):
        mark_sent(attempt.engine, JobKind.EVALUATION, evaluation_id)
    return store.published_folder(name), files


def _remember(policy: SourcePolicy, folder: Path, files: Iterable[Mapping[str, Any]]) -> None:
    """Keep the digests of what was published: however many workers evaluate it, none hashes it."""
    digests = BlobCache(policy).digests
    # It is published; without them it is only hashed again.
    with suppress(OSError, StorageError):
        for file in files:
            remember(folder.resolve() / file["name"], file["sha256"], digests)
