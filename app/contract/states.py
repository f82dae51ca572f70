"""The states of merges and evaluations, and the transitions that are legal."""

from __future__ import annotations

from enum import StrEnum


class MergeStatus(StrEnum):
    """Where a merge is; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Phase(StrEnum):
    """What a running merge is doing."""

    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    MERGING = "merging"
    PUBLISHING = "publishing"


class EvaluationStatus(StrEnum):
    """Where an evaluation is; the last four are final. `partial`: some audio was unusable."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({"succeeded", "partial", "failed", "cancelled"})
OPEN = frozenset({"queued", "running", "cancelling"})

# From each status, those that may follow. Both kinds of job share the table: only an evaluation
# ever becomes `partial`.
TRANSITIONS: dict[str, frozenset[str]] = {
    "queued": frozenset({"running", "cancelled", "failed"}),
    "running": frozenset({"queued", "cancelling", "succeeded", "partial", "failed"}),
    "cancelling": frozenset({"cancelled", "succeeded", "partial"}),
    "succeeded": frozenset(),
    "partial": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


def origins(target: str) -> frozenset[str]:
    """Return the statuses from which `target` may be reached."""
    return frozenset(status for status, targets in TRANSITIONS.items() if target in targets)
