"""Turns rows into resources: times, links, progress, digests."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from app.contract.states import OPEN
from app.services.gates import gate_of
from app.services.resources import (
    ArchitectureResource,
    ArtifactResource,
    ErrorResource,
    EvaluationResource,
    EvaluationSummary,
    EventResource,
    MergeResource,
    ProgressResource,
)
from app.storage.merges import progress

Row = Mapping[Any, Any]
_WHISPER = {
    "model_type": "whisper",
    "model_class": "WhisperForConditionalGeneration",
    "processor_class": "WhisperProcessor",
    "task": "seq2seq",
}
_MEDIA_TYPES = {".safetensors": "application/octet-stream", ".json": "application/json"}


def merge_resource(
    row: Row, evaluation: Row | None, clock: float | None, obstacle: str | None = None
) -> MergeResource:
    """Return a merge's resource; `clock` is the database's time, for the remaining time.

    `obstacle` is why a queued merge cannot run now.
    """
    recipe, sources = row["recipe"], row["sources"]
    return MergeResource(
        id=row["id"],
        name=row["name"],
        status=row["status"],
        phase=row["phase"] if row["status"] in {"running", "cancelling"} else None,
        progress=progress_resource(row, row["phase_started_at"], clock),
        method=row["method"],
        parameters=recipe["parameters"],
        rules=recipe["rules"],
        seed=recipe["seed"],
        output=recipe["output"],
        base=sources.get("base"),
        checkpoints=sources["checkpoints"],
        architecture=ArchitectureResource(**architecture_summary(row)),
        artifacts=artifact_resources(row),
        evaluation=evaluation_summary(row, evaluation),
        warnings=row["warnings"],
        attempt=row["attempt"],
        continues=row["continues"],
        queued_because=obstacle if row["status"] == "queued" else None,
        created_at=timestamp(row["created_at"]),
        started_at=maybe_timestamp(row["started_at"]),
        finished_at=maybe_timestamp(row["finished_at"]),
        error=row["error"],
        metadata=row["request"].get("metadata") or {},
        links=_merge_links(row["id"]),
    )


def is_adapter(row: Row) -> bool:
    """Return whether a merge's artifact is an adapter of its base."""
    return bool(row["recipe"]["output"].get("form") == "lora")


def architecture_summary(row: Row) -> Mapping[str, Any]:
    """Return what a merge's row says of its architecture: Whisper's before that was recorded."""
    recorded: Mapping[str, Any] = row["sources"].get("architecture") or _WHISPER
    return recorded


def evaluation_resource(
    row: Row, clock: float | None, obstacle: str | None = None
) -> EvaluationResource:
    """Return an evaluation's resource; `clock` and `obstacle` as for a merge."""
    merge_url = f"/merges/{row['merge_id']}"
    own_url = f"{merge_url}/evaluations/{row['id']}"
    return EvaluationResource(
        id=row["id"],
        merge_id=row["merge_id"],
        status=row["status"],
        progress=progress_resource(row, row["started_at"], clock),
        spec=row["spec"],
        gate=gate_of(row["spec"], row["status"], row["verdict"]),
        warnings=row["warnings"],
        attempt=row["attempt"],
        queued_because=obstacle if row["status"] == "queued" else None,
        created_at=timestamp(row["created_at"]),
        started_at=maybe_timestamp(row["started_at"]),
        finished_at=maybe_timestamp(row["finished_at"]),
        error=row["error"],
        links={
            "self": own_url,
            "cancel": f"{own_url}/cancel",
            "merge": merge_url,
            "wer": f"{merge_url}/wer?evaluation={row['id']}",
        },
    )


def evaluation_summary(row: Row, evaluation: Row | None) -> EvaluationSummary:
    """Return the summary of a merge's newest evaluation.

    The requested evaluation is created when the merge is published. Until then it counts as
    queued, or as cancelled if the merge did not succeed.
    """
    if evaluation is not None:
        return EvaluationSummary(
            status=evaluation["status"],
            id=evaluation["id"],
            progress=progress_resource(evaluation, None, None),
            error=ErrorResource(**evaluation["error"]) if evaluation["error"] else None,
            gate=gate_of(evaluation["spec"], evaluation["status"], evaluation["verdict"]),
            url=f"/merges/{row['id']}/evaluations/{evaluation['id']}",
        )
    asked = row["request"].get("evaluation")
    if not asked:
        return EvaluationSummary(status="none")
    waiting = row["status"] in OPEN or row["status"] == "succeeded"
    status: Literal["queued", "cancelled"] = "queued" if waiting else "cancelled"
    return EvaluationSummary(status=status, gate=gate_of(asked, status, None))


def artifact_resources(row: Row) -> list[ArtifactResource]:
    """Return the published files of a merge; none unless it has succeeded."""
    if row["status"] != "succeeded":
        return []
    return [
        ArtifactResource(
            name=entry["name"],
            bytes=entry["bytes"],
            sha256=entry["sha256"],
            media_type=media_type(entry["name"]),
            url=f"/merges/{row['id']}/artifacts/{entry['name']}",
        )
        for entry in row["artifacts"]
    ]


def event_resource(row: Row) -> EventResource:
    """Return one event."""
    return EventResource(
        id=row["sequence"],
        type=row["type"],
        data=row["data"],
        created_at=timestamp(row["created_at"]),
    )


def media_type(name: str) -> str:
    """Return the media type of an artifact."""
    suffix = name[name.rfind(".") :]
    return _MEDIA_TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"


def timestamp(seconds: float) -> str:
    """Return seconds since 1970 as `2026-11-23T14:26:23.123Z`."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def maybe_timestamp(seconds: float | None) -> str | None:
    """Return a time like `timestamp`, or None."""
    return None if seconds is None else timestamp(seconds)


def progress_resource(row: Row, since: float | None, clock: float | None) -> ProgressResource:
    """Return a job's progress; the remaining time needs when it began and the database's time."""
    done, total = row["progress_done"], row["progress_total"]
    eta = None
    # Below 0 if the clock was set back.
    elapsed = clock - since if clock is not None and since else -1.0
    if row["status"] == "running" and elapsed >= 0 and done and total:
        eta = round(elapsed * max(total - done, 0) / done, 1)
    return ProgressResource(**progress(done, total, row["progress_unit"]), eta_seconds=eta)


def _merge_links(merge_id: str) -> dict[str, str]:
    url = f"/merges/{merge_id}"
    parts = {
        "cancel": "cancel",
        "retry": "retry",
        "events": "events",
        "artifacts": "artifacts",
        "archive": "artifacts.tar",
        "model_card": "model-card",
        "wer": "wer",
        "evaluations": "evaluations",
    }
    return {"self": url} | {name: f"{url}/{path}" for name, path in parts.items()}
