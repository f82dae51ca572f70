"""What the rows of a study say."""

from __future__ import annotations

from app.storage.studies import seconds_used


def trial(batch: int, created: float, finished: float | None) -> dict[str, float | None]:
    return {"batch": batch, "created_at": created, "finished_at": finished}


def test_a_budget_of_time_is_used_by_searching_alone():
    """Not by the hours until a study was extended."""
    first = [trial(0, 10.0, 12.0), trial(0, 10.0, 15.0)]
    assert seconds_used([], 99.0) == 0.0
    assert seconds_used(first, 5000.0) == 5.0
    extended = [*first, trial(1, 4990.0, None), trial(1, 4990.0, 4992.0)]
    assert seconds_used(extended, 5000.0) == 15.0
