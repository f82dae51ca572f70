from __future__ import annotations

import os
import subprocess
import sys

import pytest

from app.contract.errors import ConflictError
from cli.stack import lock as lock_module
from cli.stack.lock import lock


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(lock_module, "_PATIENCE_SECONDS", 0.2)


def test_a_second_holder_is_refused_with_the_first_ones_pid(tmp_path):
    held = lock(tmp_path)
    with pytest.raises(ConflictError, match=rf"process {os.getpid()}\).*--data-dir"):
        lock(tmp_path)
    os.close(held)
    os.close(lock(tmp_path))


def test_a_child_that_inherited_the_lock_keeps_it_until_it_ends(tmp_path):
    held = lock(tmp_path)
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[held], stdin=subprocess.PIPE
    ) as child:
        os.close(held)
        with pytest.raises(ConflictError):
            lock(tmp_path)
        child.communicate()
    os.close(lock(tmp_path))
