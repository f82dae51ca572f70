"""A merge as the engine takes it, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from app.contract.recipe import Recipe
from app.planning.plan import Plan
from app.sources.compatibility import CheckedTensors
from app.sources.fetch import LocalCheckpoint
from app.sources.vocabulary import Growth
from worker.merging.engine.statistics import Gathered


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """The run was told to stop (cancelled, or its worker goes away)."""


@dataclass(frozen=True)
class Job:
    """A merge with everything local: what to do, from what, where, and on what."""

    recipe: Recipe
    plan: Plan
    checked: CheckedTensors
    base: LocalCheckpoint | None
    experts: tuple[LocalCheckpoint, ...]
    labels: tuple[str, ...]
    reference: LocalCheckpoint
    """The base or the first expert, as the artifact has it."""
    folder: Path
    previous: tuple[Path, ...] = ()
    device: str = "cpu"
    threads: int = 1
    memory_bytes: int = 0
    """Working memory of tensors that are merged at the same time; a single one may exceed it."""
    statistics: Gathered = field(default_factory=dict)
    """What was gathered on calibration sets, for the methods that need it."""
    store_folder: Path | None = None
    store_bytes: int = 0
    """Where reductions are kept for later merges, and how many bytes at most; 0: nowhere."""
    lender: LocalCheckpoint | None = None
    """The expert that the artifact's tokenizer is of; None: the reference."""
    growth: Growth | None = None
    """How the vocabulary grew, if it did."""
    point: str = ""
    """Which of a sweep's merges it is, for messages."""

    @property
    def all(self) -> tuple[LocalCheckpoint, ...]:
        """The base, if there is one, and the experts, as `labels` names them."""
        return (self.base, *self.experts) if self.base else self.experts


@dataclass
class Outcome:
    """The finished folder, the methods' warnings, and how many tensors were taken over."""

    folder: Path
    warnings: list[dict[str, str]] = field(default_factory=list)
    adopted_tensors: int = 0


@dataclass
class Observer:
    """How the run reports its progress, and how it is told to stop."""

    progress: Callable[[int, int], None] = lambda done, total: None
    stopping: Event = field(default_factory=Event)

    def check(self) -> None:
        """Raise Interrupted if the run is to stop."""
        if self.stopping.is_set():
            raise Interrupted
