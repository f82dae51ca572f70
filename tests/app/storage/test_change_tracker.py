from __future__ import annotations

from app.storage.change_tracker import ChangeTracker


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_unchanged_values_age():
    clock = Clock()
    tracker = ChangeTracker(10.0, clock)
    assert tracker.unchanged({"a": 1, "b": 1}) == {"a": 0.0, "b": 0.0}
    clock.now += 3
    assert tracker.unchanged({"a": 1, "b": 2}) == {"a": 3.0, "b": 0.0}
    clock.now += 3
    assert tracker.unchanged({"a": 1, "b": 2, "c": 1}) == {"a": 6.0, "b": 3.0, "c": 0.0}


def test_a_value_that_reappears_starts_at_zero():
    clock = Clock()
    tracker = ChangeTracker(10.0, clock)
    tracker.unchanged({"a": 1})
    clock.now += 3
    assert tracker.unchanged({}) == {}
    clock.now += 3
    assert tracker.unchanged({"a": 1}) == {"a": 0.0}


def test_a_suspended_tracker_counts_at_most_one_round():
    clock = Clock()
    tracker = ChangeTracker(4.0, clock)
    tracker.unchanged({"a": 1})
    clock.now += 3600
    assert tracker.unchanged({"a": 1}) == {"a": 4.0}
