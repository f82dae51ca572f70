"""Shows progress: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_PLAIN_SECONDS = 5.0


class ProgressReport:
    """Writes progress to stderr."""

    def __init__(self, label: str = "") -> None:
        self._console = Console(stderr=True)
        self._label = label
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._written_at = 0.0
        self._unit = ""

    def __enter__(self) -> ProgressReport:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def write(self, text: str) -> None:
        """Write a line."""
        console = self._bar.console if self._bar else self._console
        console.print(self._text(text), markup=False, highlight=False, soft_wrap=True)

    def advance(self, done: int, total: int | None, unit: str) -> None:
        """Report that `done` of `total` (None: unknown) units are done."""
        if self._bar:
            if self._task is None or unit != self._unit:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(self._label, total=total, unit=unit)
            self._bar.update(self._task, completed=done, total=total)
        elif done == total or unit != self._unit or self._due():
            self._written_at = time.monotonic()
            self.write(f"{done} of {total} {unit}" if total else f"{done} {unit}")
        self._unit = unit

    def _due(self) -> bool:
        return time.monotonic() - self._written_at >= _PLAIN_SECONDS

    def _text(self, text: str) -> str:
        return f"{self._label}: {text}" if self._label else text
