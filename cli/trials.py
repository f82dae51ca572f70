"""Follows a study: a live table of its best trials on a terminal, otherwise a line for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_SHOWN = 8


class TrialReport:
    """Writes a study's events to stderr; `trials` returns its trials, for the live table."""

    def __init__(self, trials: Callable[[], Sequence[Mapping[str, Any]]] | None = None) -> None:
        self._console = Console(stderr=True)
        self._trials = trials
        self._live: Live | None = None
        self._progress = ""
        self._phase = ""

    def __enter__(self) -> TrialReport:
        if self._trials is not None and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take in an event of the study."""
        if kind == "phase":
            self._phase = str(data["phase"])
            self._write(self._phase)
        elif kind == "status":
            self._write(str(data["status"]))
        elif kind == "warning":
            self._write(f"warning: {data['message']}")
        elif kind == "progress":
            self._progress = f"{data['done']} of {data['total']} {data['unit']}"
            if self._live is None:
                self._write(self._progress)
        elif kind == "trial" and self._live is None and data["status"] != "running":
            reason = f": {data['reason']}" if data.get("reason") else ""
            self._write(f"#{data['number']} {data['status']}{reason}")
        if self._live is not None and self._trials is not None and kind == "progress":
            self._live.update(self._table(self._trials()))

    def _write(self, text: str) -> None:
        console = self._live.console if self._live else self._console
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _table(self, trials: Sequence[Mapping[str, Any]]) -> Table:
        complete = [one for one in trials if one["status"] == "complete" and one["objectives"]]
        complete.sort(key=lambda one: (not one["feasible"], one["objectives"], one["number"]))
        stopped = sum(one["status"] == "stopped" for one in trials)
        title = f"{self._phase}: {self._progress}, {len(complete)} complete, {stopped} stopped"
        table = Table(title=Text(title))
        for name in ("trial", "merge", "objective", "constraints"):
            table.add_column(name, justify="right" if name == "objective" else "left")
        running = [one for one in trials if one["status"] == "running"]
        for one in [*complete[:_SHOWN], *running]:
            rates = ", ".join(f"{100 * rate:.2f}" for rate in one["objectives"] or ())
            state = "met" if one["feasible"] else "not met"
            if one["status"] == "running":
                state = f"at {one['fraction']:.0%}"
            table.add_row(Text(f"#{one['number']}"), Text(one["label"]), rates, state)
        return table
