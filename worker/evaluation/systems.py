"""The checkpoints that an evaluation decodes with, fetched once and completed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from app.contract.errors import AfluenteError, EvaluationFailedError
from app.sources.checkpoint import ResolvedCheckpoint
from app.sources.completion import borrowed, lacking
from app.sources.fetch import LocalCheckpoint, fetch
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve


@dataclass(frozen=True)
class System:
    """A checkpoint to decode with: its URI, and its digest if the merge has recorded it.

    `lender` is the URI of the merge's reference, which provides missing files.
    """

    name: str
    uri: str
    sha256: str | None = None
    lender: str | None = None


@dataclass(frozen=True)
class CompleteCheckpoint:
    """A local checkpoint, and the files that it lacks; `key` identifies both by digest."""

    checkpoint: LocalCheckpoint
    lender: LocalCheckpoint | None

    @property
    def key(self) -> str:
        """The digest of everything that decides transcripts."""
        if self.lender is None:
            return self.checkpoint.sha256
        both = f"{self.checkpoint.sha256} {self.lender.sha256}"
        return hashlib.sha256(both.encode()).hexdigest()

    def opened(self) -> AbstractContextManager[Path]:
        """Give a folder with all files."""
        return self.checkpoint.opened(self.lender)


class Checkpoints:
    """Fetches systems' checkpoints; each is fetched once."""

    def __init__(self, policy: SourcePolicy) -> None:
        self._policy = policy
        self._known: dict[str, CompleteCheckpoint] = {}

    def of(self, system: System, should_stop: Callable[[], bool]) -> CompleteCheckpoint:
        """Return a system's checkpoint; EvaluationFailedError names the system."""
        if system.name not in self._known:
            try:
                found = resolve(system.uri, self._policy)
                lender = self._lender(system, found, should_stop)
                local = fetch(found, self._policy, should_stop=should_stop)
            except AfluenteError as error:
                raise EvaluationFailedError(f"{system.name}: {error.message}") from error
            self._known[system.name] = CompleteCheckpoint(local, lender)
        return self._known[system.name]

    def _lender(
        self, system: System, found: ResolvedCheckpoint, should_stop: Callable[[], bool]
    ) -> LocalCheckpoint | None:
        """Return the reference's files that the checkpoint lacks; None if it is complete."""
        if system.lender is None or not lacking(found):
            return None
        reference = resolve(system.lender, self._policy)
        names = borrowed(found, reference)
        files = tuple(file for file in reference.files if file.name in names)
        return fetch(replace(reference, files=files), self._policy, should_stop=should_stop)
