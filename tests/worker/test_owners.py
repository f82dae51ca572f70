"""Dead processes of this machine are recognised; others are never declared dead."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker.processes.owners import describe_process, is_known_dead

DESCRIBE = (
    "from worker.processes.owners import describe_process as d; print(d('wrk_1'), flush=True)"
)


def child(code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def test_a_live_process_is_not_known_dead_and_a_dead_one_is() -> None:
    with child(f"{DESCRIBE}; input()") as process:
        assert process.stdout is not None
        owner = process.stdout.readline().strip()
        assert not is_known_dead(owner)
        process.kill()
        process.wait()
        assert is_known_dead(owner)


def test_a_reused_pid_is_recognised() -> None:
    worker, place, pid, started = describe_process("wrk_1").split(":")
    assert is_known_dead(f"{worker}:{place}:{pid}:{int(started) - 1}")


@pytest.mark.parametrize(
    "owner", ["", "wrk_1", "wrk_1:elsewhere/4:1:1", "wrk_1::1:1", "wrk_1:a:b:c:d"]
)
def test_processes_of_other_machines_are_not_known_dead(owner: str) -> None:
    assert not is_known_dead(owner)
