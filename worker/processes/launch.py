"""Executes a program that the kernel kills when the parent ends, even after a `kill -9`.

Run as a file: `python -I -S launch.py PARENT_PID PROGRAM [ARGUMENT ...]`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends (only on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Ask for the death signal, which survives exec; exec unless the parent has ended."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    die_with_parent()
    # The parent may have ended before the call.
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
