"""The states of merges, evaluations and studies, and the legal transitions."""

from __future__ import annotations

from enum import StrEnum


class MergeStatus(StrEnum):
    """A merge's status; the last three are final."""

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
    CALIBRATING = "calibrating"
    MERGING = "merging"
    CONVERTING = "converting"
    PUBLISHING = "publishing"


class StudyPhase(StrEnum):
    """What a running study is doing."""

    PREPARING = "preparing"
    REFERENCES = "references"
    SEARCHING = "searching"
    MERGING = "merging"
    TESTING = "testing"


class TrialStatus(StrEnum):
    """A trial's status; `stopped`: it was not worth decoding to the end."""

    RUNNING = "running"
    STOPPED = "stopped"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"


class EvaluationStatus(StrEnum):
    """An evaluation's status; the last four are final. `partial`: some audio was unusable."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({"succeeded", "partial", "failed", "cancelled"})
OPEN = frozenset({"queued", "running", "cancelling"})
# An evaluation or study in these states still needs its parts.
WANTED = frozenset({"queued", "running"})

# The statuses that may follow each status. Merges and evaluations share the table, but only an
# evaluation becomes `partial`.
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
