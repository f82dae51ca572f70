"""Reads what was gathered on calibration sets: a safetensors file an expert, kept open.

A file has a flat float32 tensor for each parameter of the model. Its metadata say which others a
tensor is also for (`shared`, by name), the norm over all tensors, and the sha256 of their bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from app.contract.catalogue.method import Statistic
from worker.merging.method import Statistics


class StatisticsFile:
    """An expert's file, open: it can be deleted meanwhile."""

    def __init__(self, path: Path) -> None:
        """Open it; OSError, SafetensorError or KeyError if it is not there, or not whole."""
        opened: Any = safe_open
        self._file: Any = opened(path, "pt")
        metadata = self._file.metadata() or {}
        self._shared: Mapping[str, str] = json.loads(metadata["shared"])
        self._names = frozenset(self._file.keys())
        self.norm, self.sha256 = float(metadata["norm"]), str(metadata["sha256"])

    def place(self, name: str) -> str | None:
        """Return under which name a tensor's statistic is stored; None if there is none."""
        for known in (name, f"model.{name}"):
            found = self._shared.get(known, known)
            if found in self._names:
                return found
        return None

    def read(self, place: str, start: int, stop: int) -> torch.Tensor:
        """Return entries of what is stored there."""
        found: torch.Tensor = self._file.get_slice(place)[start:stop]
        return found


@dataclass(frozen=True)
class GatheredStatistics:
    """The experts' files, in order."""

    files: Sequence[StatisticsFile]

    @property
    def sha256(self) -> str:
        """The digest of all files' tensors."""
        return hashlib.sha256(" ".join(file.sha256 for file in self.files).encode()).hexdigest()

    def of(self, name: str) -> TensorStatistics | None:
        """Return a tensor's; None if there are none."""
        places = [file.place(name) for file in self.files]
        found = tuple(place for place in places if place is not None)
        return TensorStatistics(self.files, found) if len(found) == len(self.files) else None


Gathered = Mapping[Statistic, GatheredStatistics]
"""What was gathered for a merge, by kind."""


@dataclass(frozen=True)
class TensorStatistics(Statistics):
    """One tensor's statistics in the experts' files."""

    files: Sequence[StatisticsFile]
    places: tuple[str, ...]

    @property
    def norms(self) -> tuple[float, ...]:
        """Each expert's norm over all tensors."""
        return tuple(file.norm for file in self.files)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return entries, an expert a row."""
        pairs = zip(self.files, self.places, strict=True)
        return torch.stack([file.read(place, start, stop) for file, place in pairs])


def save_statistics(
    path: Path, tensors: Mapping[str, torch.Tensor], shared: Mapping[str, str]
) -> None:
    """Write an expert's file; `shared` maps further names to those of `tensors`."""
    flat = {name: tensor.float().reshape(-1).cpu() for name, tensor in sorted(tensors.items())}
    digest, squares = hashlib.sha256(json.dumps(sorted(shared.items())).encode()), 0.0
    for name, tensor in flat.items():
        digest.update(name.encode())
        digest.update(tensor.numpy().data)
        squares += float(tensor.double().square().sum())
    metadata = {
        "shared": json.dumps(dict(shared), sort_keys=True),
        "norm": repr(squares**0.5),
        "sha256": digest.hexdigest(),
    }
    save_file(flat, path, metadata)
