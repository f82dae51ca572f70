"""Names of the queue, its tasks and its channels, shared by API and workers."""

from __future__ import annotations

QUEUE = "afluente"
MERGE_TASK = "afluente.merge"
EVALUATE_TASK = "afluente.evaluate"
STUDY_TASK = "afluente.study"


def events_channel(topic: str) -> str:
    """Return the Redis channel that wakes the readers of a merge's or a study's events."""
    return f"afluente:events:{topic}"
