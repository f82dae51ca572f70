"""Keeps the folder where the user stands, and other applications' variables, out of the service.

A process of ours calls `isolate` before it imports anything large: a project's own `numpy.py`,
`celeryconfig.py` or `CELERY_BROKER_URL` is then not taken for ours.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

_OWN_ROOT = Path(__file__).resolve().parents[1]
# What Celery, kombu and billiard read. Their settings are made in app/storage/queue.py.
_PREFIXES = ("CELERY", "KOMBU_")
_NAMES = {
    "AUTOSCALE_KEEPALIVE", "C_BENCH", "C_BENCH_EVERY", "C_FAKEFORK", "C_FORCE_ROOT", "C_IMPDEBUG",
    "C_REMDEBUG", "C_STRICT_APP", "C_WARN_APP", "C_WNOCONF", "DISABLE_TRACEBACKS",
    "DJANGO_PROJECT_DIR", "DJANGO_SETTINGS_MODULE", "EVENTLET_NOBLOCK",
    "FORKED_BY_MULTIPROCESSING", "MP_LOG", "MP_MAIN_FILE", "NOSETPS", "PICKLE_PROTOCOL",
    "REMAP_SIGTERM", "TIMER_DEBUG", "USE_FAST_LOCALS", "_MP_FORK_LOGFILE_", "_MP_FORK_LOGFORMAT_",
    "_MP_FORK_LOGLEVEL_",
}  # fmt: skip


def isolate() -> None:
    """Import nothing from the working directory any more, here or in child processes."""
    sys.path[:] = [entry for entry in sys.path if not _is_strange(entry)]
    if path := os.environ.get("PYTHONPATH"):
        kept = [entry for entry in path.split(os.pathsep) if not _is_strange(entry)]
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    forget_variables()


def forget_variables() -> None:
    """Remove the variables that would set up Celery for another application."""
    for name in list(os.environ):
        if name in _NAMES or name.upper().startswith(_PREFIXES):
            del os.environ[name]


def _is_strange(entry: str) -> bool:
    """Return whether an entry of the path is the working directory, unless our code is there."""
    try:
        here = Path.cwd().resolve()
        if Path(entry).resolve() != here:
            return False
    except OSError:  # the working directory was deleted
        return entry in {"", "."}
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    return here != _OWN_ROOT and here not in installed
