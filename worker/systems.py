"""The checkpoints that an evaluation decodes with, fetched once and completed."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.contract.errors import AfluenteError, EvaluationFailedError
from app.contract.recipe import parse_request
from app.contract.settings import Settings
from app.contract.tensors import dtype_for
from app.services.preparation import prepare
from app.sources.checkpoint import ResolvedCheckpoint
from app.sources.completion import borrowed, lacking
from app.sources.fetch import LocalCheckpoint, fetch
from app.sources.key_prefixes import common_prefix
from app.sources.policy import SourcePolicy
from app.sources.resolve import known_names, resolve
from app.sources.uris import file_uri
from worker.merging.engine.job import Interrupted, Observer
from worker.merging.engine.run import run
from worker.merging.local import fetch_all, make_job


@dataclass(frozen=True)
class System:
    """A checkpoint to decode with: its URI, and its digest if the merge has recorded it.

    `lender` is the URI of the merge's reference, which provides missing files, and the base of a
    `difference`.
    """

    name: str
    uri: str
    sha256: str | None = None
    lender: str | None = None
    difference: bool = False


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

    def __init__(self, settings: Settings, policy: SourcePolicy) -> None:
        self._settings, self._policy = settings, policy
        self._known: dict[str, CompleteCheckpoint] = {}

    def of(self, system: System, should_stop: Callable[[], bool]) -> CompleteCheckpoint:
        """Return a system's checkpoint; EvaluationFailedError names the system."""
        if system.name not in self._known:
            try:
                found = resolve(system.uri, self._policy, difference=system.difference)
                wrapped = self._is_wrapped(system, found)
                if found.needs_base or found.prefix or wrapped:
                    on_base = found.needs_base or wrapped or bool(lacking(found))
                    found = self._in_full(system, found, on_base, should_stop)
                lender = self._lender(system, found, should_stop)
                local = fetch(found, self._policy, should_stop=should_stop)
            except AfluenteError as error:
                raise EvaluationFailedError(f"{system.name}: {error.message}") from error
            self._known[system.name] = CompleteCheckpoint(local, lender)
        return self._known[system.name]

    def _is_wrapped(self, system: System, found: ResolvedCheckpoint) -> bool:
        """Return whether its names have a prefix that only the reference's names tell."""
        if system.lender is None or found.needs_base or known_names(found.config):
            return False
        reference = resolve(system.lender, self._policy)
        return bool(common_prefix(found.tensors, reference.tensors))

    def _in_full(
        self,
        system: System,
        found: ResolvedCheckpoint,
        on_base: bool,
        should_stop: Callable[[], bool],
    ) -> ResolvedCheckpoint:
        """Return what libraries can load of a checkpoint in another form: the merge of it alone."""

        def progress(done: int, total: int) -> None:
            if should_stop():
                raise Interrupted

        expert = {"uri": system.uri, "form": "difference" if found.difference else None}
        document: dict[str, Any] = {"checkpoints": [expert], "method": "soup"}
        if on_base:
            document["base"] = system.lender
        if not found.needs_base:
            document["output"] = {"dtype": dtype_for(found.tensors.values())}
        prepared = prepare(parse_request(document).recipe, self._policy)
        locals_ = fetch_all(prepared, self._policy, should_stop=should_stop)
        scratch = Path(tempfile.mkdtemp(prefix="afluente-"))
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        job = make_job(prepared, locals_, scratch, self._settings)
        made = run(job, Observer(progress)).folder
        # It is ours, whatever the operator lets callers reach.
        return resolve(file_uri(made), replace(self._policy, file_roots=None, schemes=None))

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
