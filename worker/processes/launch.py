"""Becomes another program that the kernel kills as soon as the parent is gone.

Run as a file: `python -I -S launch.py PARENT_PID PROGRAM [ARGUMENT ...]`. A `kill -9` of the
parent leaves nothing behind that way; the death signal survives exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; elsewhere than on Linux, hope."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Ask for the death signal, make sure that the parent is still there, and exec."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    die_with_parent()
    # It may have died before the kernel knew of our wish.
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
