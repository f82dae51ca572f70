"""Identifies processes, so that others on the same machine can check whether they are alive."""

from __future__ import annotations

import os
from pathlib import Path


def describe_process(worker_id: str) -> str:
    """Return `worker:place:pid:start` of this process, as the owner of a lease."""
    pid = os.getpid()
    return f"{worker_id}:{_place()}:{pid}:{_started(pid)}"


def is_known_dead(owner: str) -> bool:
    """Return whether the owner was a process of this machine that has ended; False if unknown."""
    parts = owner.split(":")
    if len(parts) != 4 or parts[1] != _place() or not parts[1]:
        return False
    pid, started = parts[2:]
    return pid.isdigit() and (_is_gone(int(pid)) or _started(int(pid)) not in {started, ""})


def is_known_alive(owner: str) -> bool:
    """Return whether the owner is a process of this machine that runs; False if unknown."""
    parts = owner.split(":")
    is_here = len(parts) == 4 and bool(parts[1]) and parts[1] == _place()
    return is_here and not is_known_dead(owner)


def _place() -> str:
    """Return an identifier of this boot and process namespace; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # alive, but another user's
    return False


def _started(pid: int) -> str | None:
    """Return a process's start time in ticks since boot.

    None if it is a zombie; empty if it is not visible.
    """
    try:
        # The command may contain spaces and parentheses; the fields after the last one are fixed.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, started = fields[0], fields[19]
    return None if state in {"Z", "X"} else started
