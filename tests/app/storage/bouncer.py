"""A real pgbouncer in front of the tests' PostgreSQL, where one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.app.storage.conftest import Cluster
from worker.processes.launch import die_with_parent

_PORT = 6543


@contextmanager
def pgbouncer(cluster: Cluster) -> Iterator[str]:
    """Yield the options of a URL that leads through a pgbouncer of three connections."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("no pgbouncer is installed here")
    folder = cluster.folder
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = host={folder} user=test\n[pgbouncer]\nlisten_addr =\n"
        f"listen_port = {_PORT}\nunix_socket_dir = {folder}\nauth_type = any\n"
        f"pool_mode = transaction\ndefault_pool_size = 3\nlogfile = {folder}/pgbouncer.log\n"
    )
    process = subprocess.Popen(
        [program, configuration],
        cwd=folder,
        user="postgres" if os.geteuid() == 0 else None,
        preexec_fn=die_with_parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not (folder / f".s.PGSQL.{_PORT}").exists():
            assert process.poll() is None, (folder / "pgbouncer.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"host={folder}&port={_PORT}"
    finally:
        process.terminate()
        process.wait(10)
