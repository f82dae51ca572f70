"""A kernel is there whatever became of the cache of what was compiled."""

import subprocess
import sys

SOURCE = """
from worker.merging.kernels.compiled import kernel

@kernel("i8(i8)")
def double(number):
    return 2 * number

print(double(21))
"""


def run(folder, cache):
    script = folder / "script.py"
    script.write_text(SOURCE)
    environment = {"PYTHONPATH": ":".join(p for p in sys.path if p), "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "42\n", done.stderr


def test_a_damaged_cache_is_passed_over(tmp_path):
    cache = tmp_path / "cache"
    run(tmp_path, cache)
    indices = list(cache.rglob("*.nbi"))
    assert indices
    for index in indices:
        index.write_bytes(b"")
    run(tmp_path, cache)


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    run(tmp_path, blocked / "cache")
