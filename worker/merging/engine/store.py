"""Finished reductions on disk, under the digests of their inputs, for later merges.

What is loaded is what was computed, to the bit, so that the merge's bytes do not depend on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from app.planning import cost
from worker.merging.engine.schedule import Unit
from worker.merging.method import Reduction, Subject

# What is left of a disk, at most a tenth of it: the database may be on the same.
_SPARE_BYTES = 2**30
# Raise this when a reduction gives other bits for the same inputs.
_RECIPE = 2
_PARTIAL = ".partial"
# A partial file that nobody wrote to for so long is a killed process's.
_ABANDONED_SECONDS = 86_400


@dataclass(frozen=True)
class ReductionStore:
    """A folder of finished reductions that holds at most so many bytes, the newest ones.

    Attributes:
        inputs: the digests of the base (or None) and the experts, in order.
        origin: what else decides the results' bits: torch's version, the device.
    """

    folder: Path
    max_bytes: int
    inputs: tuple[str | None, ...]
    origin: Mapping[str, str]

    def path(self, unit: Unit, reduction: Reduction, subject: Subject) -> Path | None:
        """Return where a reduction's result is, or would be; None if it cannot be stored."""
        if not reduction.storable:
            return None
        reading = asdict(unit.reading) | {"own_weights": None}
        document = {
            "recipe": _RECIPE,
            "reduction": [type(reduction).__qualname__, repr(reduction)],
            "weights": subject.weights if reduction.depends_on_weights else None,
            "tensors": [[step.name, step.target.shape, asdict(step.cut)] for step in unit.steps],
            "reading": reading,
            "blocks": [cost.BLOCK_ENTRIES, cost.STRETCH_ENTRIES],
            "inputs": self.inputs,
            "origin": dict(self.origin),
        }
        key = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{key}.safetensors"

    def load(
        self, paths: Mapping[Reduction, Path], subject: Subject
    ) -> tuple[dict[Reduction, Any], bool] | None:
        """Return the results, and whether all inputs are equal; None if one cannot be read."""
        found, equal = {}, True
        try:
            for reduction, path in paths.items():
                with safe_open(path, "pt") as file:
                    arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    equal &= (file.metadata() or {})["equal"] == "True"
                os.utime(path)
                found[reduction] = reduction.unpacked(arrays, subject)
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        return found, equal

    def save(self, path: Path, reduction: Reduction, result: Any, *, equal: bool) -> None:
        """Store a result, unless the disk is nearly full: then it is computed again."""
        with suppress(OSError, SafetensorError):
            self.folder.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(self.folder)
            if disk.free < min(disk.total // 10, _SPARE_BYTES):
                return
            with written_whole(path) as partial:
                save_file(reduction.packed(result), partial, {"equal": str(equal)})

    def trim(self) -> None:
        """Delete what was not used for longest, until the folder is within its limit."""
        trim(self.folder, self.max_bytes)


def partial_of(path: Path) -> Path:
    """Return a name, used by nobody else, under which a file is written before it is renamed.

    Process ids do not suffice: workers in several containers share the folder, and have equal ones.
    """
    return path.with_suffix(f".{uuid4().hex}{_PARTIAL}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the name to write a file to, and rename it; after an error the file is deleted."""
    partial = partial_of(path)
    try:
        yield partial
        partial.rename(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def trim(folder: Path, max_bytes: int) -> None:
    """Delete the files that were not used for longest, until a folder is within its limit.

    Files that another process may still be writing stay.
    """
    files: list[tuple[float, int, Path]] = []
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):  # another process trims too
                found = path.stat()
                is_new = time.time() - found.st_mtime < _ABANDONED_SECONDS
                if not (path.name.endswith(_PARTIAL) and is_new):
                    files.append((found.st_mtime, found.st_size, path))
    files.sort()
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
