"""Keeps the working directory and other applications' environment variables out of the service.

Every process calls `isolate` before other imports, so that it does not load a `numpy.py` or
`celeryconfig.py` from the user's folder, or read the user's `CELERY_BROKER_URL`.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

_OWN_ROOT = Path(__file__).resolve().parents[1]
# Variables that Celery, kombu and billiard read; app/storage/queue.py sets them up in code.
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
    """Stop imports from the working directory, in this process and its children."""
    sys.path[:] = [entry for entry in sys.path if not _is_working_directory(entry)]
    if path := os.environ.get("PYTHONPATH"):
        kept = [entry for entry in path.split(os.pathsep) if not _is_working_directory(entry)]
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    forget_variables()


def forget_variables() -> None:
    """Remove environment variables that configure Celery for another application."""
    for name in list(os.environ):
        if name in _NAMES or name.upper().startswith(_PREFIXES):
            del os.environ[name]


def _is_working_directory(entry: str) -> bool:
    """Return whether a path entry is the working directory, unless our own code is there."""
    try:
        here = Path.cwd().resolve()
        if Path(entry).resolve() != here:
            return False
    except OSError:  # the working directory was deleted
        return entry in {"", "."}
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    return here != _OWN_ROOT and here not in installed
