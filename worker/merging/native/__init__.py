"""Compiled loops over a block's entries and matrices: one pass where array operations take many."""

from worker.merging.native.binding import *  # noqa: F403
