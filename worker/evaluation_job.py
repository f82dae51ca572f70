"""What a worker does for an evaluation: every system on every dataset, stored as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.contract.errors import AfluenteError, EvaluationFailedError
from app.contract.evaluation import (
    DatasetSpec,
    EvaluatedDataset,
    EvaluationSpec,
    Utterance,
)
from app.services.gates import decide
from app.services.preparation import source_policy
from app.sources.datasets import check_readable, resolve_dataset
from app.sources.fetch import LocalCheckpoint, fetch
from app.sources.manifests import Manifest, audio_path, read_manifest
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from app.storage import evaluations, merges
from app.storage.database import writing
from app.storage.leases import LeaseLostError, finish
from app.storage.transcripts import StoredTranscripts
from worker.attempts import Attempt
from worker.evaluation.runner import evaluate
from worker.merging.local import choose_device


@dataclass(frozen=True)
class _System:
    """A checkpoint to decode with, and the URI it is at."""

    name: str
    uri: str


def do_evaluation(attempt: Attempt) -> None:
    """Decode every dataset with the merge and what it is compared with; store each result."""
    engine, lease = attempt.engine, attempt.lease
    row, merge = evaluations.get(engine, lease.id), merges.get(engine, lease.merge_id)
    if row is None or merge is None:
        raise LeaseLostError(lease.id)
    spec = EvaluationSpec.model_validate(row["spec"])
    policy = source_policy(attempt.settings, engine)
    datasets = [(dataset, _manifest(dataset, policy)) for dataset in spec.datasets]
    systems = list(_systems(spec, merge))
    per_system = sum(len(manifest.utterances) for _, manifest in datasets)
    total, before, statuses, position = per_system * len(systems), 0, [], 0

    def tell(done: int, total: int) -> None:
        evaluations.set_progress(engine, lease, done, total)

    throttled = attempt.throttled(tell)
    for system in systems:
        checkpoint = _fetch(attempt, system, policy)
        for dataset, manifest in datasets:
            start = before

            def advance(done: int, _: int, start: int = start) -> None:
                throttled(start + done, total)

            result = _decode(attempt, checkpoint, spec, dataset, manifest, policy, advance)
            _save(attempt, system, result, position)
            statuses.append(result.result.status)
            before += len(manifest.utterances)
            position += 1
    if all(status == "failed" for status in statuses):
        raise EvaluationFailedError(
            "No utterance of any dataset could be decoded; GET the merge's wer and see `skipped`."
        )
    status = "succeeded" if all(s == "succeeded" for s in statuses) else "partial"
    verdict = decide(engine, lease.merge_id, lease.id, spec, status)
    with writing(engine) as connection:
        finish(connection, lease, status, {"verdict": verdict})


def _systems(spec: EvaluationSpec, merge: Any) -> Iterator[_System]:
    yield _System("merge", f"merge://{merge['id']}")
    sources = merge["sources"]
    for other in spec.compare_with:
        if other == "base" and sources["base"]:
            yield _System("base", sources["base"]["resolved"])
        elif other == "checkpoints":
            for source in sources["checkpoints"]:
                yield _System(source["name"], source["resolved"])
        elif other.startswith("merge://"):
            yield _System(other.removeprefix("merge://"), other)


def _manifest(dataset: DatasetSpec, policy: SourcePolicy) -> Manifest:
    path = resolve_dataset(dataset.uri, policy, param=f"dataset {dataset.name}")
    return read_manifest(path, label=dataset.uri, roots=policy.file_roots)


def _fetch(attempt: Attempt, system: _System, policy: SourcePolicy) -> LocalCheckpoint:
    try:
        found = resolve(system.uri, policy)
        return fetch(found, policy, should_stop=attempt.keeper.stopping.is_set)
    except AfluenteError as error:
        raise EvaluationFailedError(f"{system.name}: {error.message}") from error


def _decode(
    attempt: Attempt,
    checkpoint: LocalCheckpoint,
    spec: EvaluationSpec,
    dataset: DatasetSpec,
    manifest: Manifest,
    policy: SourcePolicy,
    progress: Any,
) -> EvaluatedDataset:
    def locate(utterance: Utterance) -> Path:
        return check_readable(audio_path(manifest, utterance), policy)

    result = evaluate(
        checkpoint.folder,
        checkpoint.sha256,
        manifest,
        spec.decoding_of(dataset),
        StoredTranscripts(attempt.engine),
        progress=progress,
        should_stop=attempt.keeper.stopping.is_set,
        device=choose_device(attempt.settings.device),
        locate=locate,
    )
    return EvaluatedDataset(
        name=dataset.name,
        group=dataset.group,
        normalizer=spec.normalizer_of(dataset),
        result=result,
    )


def _save(attempt: Attempt, system: _System, evaluated: EvaluatedDataset, position: int) -> None:
    document = evaluated.model_dump(mode="json")
    utterances = document["result"].pop("utterances")
    evaluations.save_result(
        attempt.engine,
        attempt.lease,
        system=system.name,
        dataset=evaluated.name,
        position=position,
        result=document,
        utterances=utterances,
    )
