"""Names of the queue, its tasks and its channels, shared by API and workers."""

from __future__ import annotations

QUEUE = "afluente"
MERGE_TASK = "afluente.merge"
EVALUATE_TASK = "afluente.evaluate"


def events_channel(merge_id: str) -> str:
    """Return the Redis channel that wakes the readers of a merge's events."""
    return f"afluente:events:{merge_id}"
