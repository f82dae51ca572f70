"""Compiled loops over a block's entries: one reading where whole-array operations take many.

All take C-contiguous numpy arrays, run on the calling thread and let go of the interpreter's lock.
What they add up in float32 is added in the order of the experts, entry by entry, so that results do
not depend on where blocks begin.
"""
