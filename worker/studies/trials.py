"""Tries merges, a batch at a time: chooses them, decodes them rung by rung, and judges them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from app.contract.errors import EvaluationFailedError, InvalidRequestError
from app.storage import studies
from app.storage.database import clock
from app.storage.leases import LeaseLostError
from app.storage.studies import ALL_SETS, PlannedPiece
from worker.attempts import Attempt
from worker.studies.decoder import StudyDecoder
from worker.studies.outcome import tried
from worker.studies.pieces import decode_all
from worker.studies.racing import (
    Scores,
    expected,
    judge,
    objectives_of,
    pooled_units,
    rungs,
)
from worker.studies.search import Choice, Search

Row = Mapping[Any, Any]
# A rung with fewer utterances is one piece, so that claiming and storing stay cheap.
_LEAST_UTTERANCES = 32


class Trials:
    """The trials of the study that an attempt leads."""

    def __init__(self, attempt: Attempt, decoder: StudyDecoder) -> None:
        self.attempt, self.engine, self.lease = attempt, attempt.engine, attempt.lease
        self.decoder, self.study = decoder, decoder.study
        development = self.study.request.development
        self._sets = development.datasets if development else ()
        self._search = Search(self.study)
        self._scores: dict[str, Scores] = {}
        self._read: set[tuple[str, str, int]] = set()

    def run(self) -> tuple[int, float | None]:
        """Try merges until the budget is used up; return the budget: trials and seconds.

        First finishes the trials that are running.
        """
        self._check_measures()
        self._race([trial for trial in self.rows() if trial["status"] == "running"])
        while True:
            past, budget = self.rows(), self._budget()
            count = self._left(past, *budget)
            chosen = self._search.choose([tried(trial) for trial in past], count) if count else ()
            if not chosen:
                return budget
            batch = 1 + max((trial["batch"] for trial in past), default=-1)
            planned = [
                self._planned(number, batch, choice)
                for number, choice in enumerate(chosen, len(past))
            ]
            self.attempt.retried(partial(self._add, planned))
            self._race(planned)

    def _check_measures(self) -> None:
        """Raise EvaluationFailedError if no trial could be rated, before any is decoded."""
        if not self._sets:
            return
        self._refresh([])
        some = self._of(self.study.systems[0])
        if objectives_of(self.study, some) is None:
            raise EvaluationFailedError(
                "The development sets of an objective have no reference words: no trial could be "
                "rated. Choose another objective, or sets with words."
            )
        if (name := pooled_units(self.study, some)) is not None:
            raise EvaluationFailedError(
                f"{name} would add up words and characters (sets of languages without spaces are "
                'scored by characters); use ".macro", or name single sets.'
            )

    def rows(self) -> list[Any]:
        """Return the trials' rows, in order."""
        return self.attempt.retried(lambda: studies.trials(self.engine, self.lease.id))

    def _budget(self) -> tuple[int, float | None]:
        row = self.attempt.retried(lambda: studies.get(self.engine, self.lease.id))
        if row is None:
            raise LeaseLostError(self.lease.id)
        return row["trials"], row["seconds"]

    def _left(self, past: Sequence[Row], most: int, seconds: float | None) -> int:
        """Return how many trials may start now."""
        if seconds is not None:
            time = self.attempt.retried(lambda: clock(self.engine))
            if studies.seconds_used(past, time) >= seconds:
                return 0
        return max(0, min(self.study.request.search.batch, most - len(past)))

    def _planned(self, number: int, batch: int, choice: Choice) -> dict[str, Any]:
        """Return the columns of a new trial; its recipe is empty if the point has none."""
        try:
            parsed = self.study.parsed(choice.candidate, choice.values)
            recipe = parsed.recipe.model_dump(mode="json")
        except InvalidRequestError:
            recipe = {}
        return {
            "number": number,
            "batch": batch,
            "candidate": choice.candidate,
            "point": dict(choice.values),
            "recipe": recipe,
        }

    def _add(self, planned: Sequence[Row]) -> None:
        known = len(studies.trials(self.engine, self.lease.id))
        fresh = [trial for trial in planned if trial["number"] >= known]
        studies.add_trials(self.engine, self.lease, fresh)

    def _race(self, batch: Sequence[Row]) -> None:
        """Decode trials rung by rung; after each, end those that are not worth going on."""
        refused = {
            int(trial["number"]): {"status": "failed", "reason": reason}
            for trial in batch
            if (reason := self._refused(trial)) is not None
        }
        if refused:
            self._judged(refused)
        shares = rungs(self.study) if self._sets else (1.0,)
        # Trials of one batch have finished the same rungs: they are judged together.
        rung = max((int(trial.get("rungs", 0)) for trial in batch), default=0)
        going = [int(trial["number"]) for trial in batch if trial["number"] not in refused]
        while going:
            shared = self._divided(rung)
            planned = [
                PlannedPiece(f"#{number}", name, rung, count)
                for number in going
                for name, count in shared.items()
            ]
            decode_all(self.attempt, self.decoder, planned)
            verdicts = self._verdicts(going, rung, shares)
            self._judged(verdicts)
            going = [number for number in going if verdicts[number]["status"] == "running"]
            rung += 1

    def _divided(self, rung: int) -> dict[str, int]:
        """Return a rung's pieces: sets with their utterances; few utterances are one piece."""
        counts = {one.name: len(self.decoder.part(one, rung).utterances) for one in self._sets}
        total = sum(counts.values())
        if total < _LEAST_UTTERANCES:
            return {ALL_SETS: total} if total else {}
        return {name: count for name, count in counts.items() if count}

    def _refused(self, trial: Row) -> str | None:
        """Return why a point has no merge although each of its values is allowed, or None."""
        try:
            self.study.parsed(trial["candidate"], trial["point"])
        except InvalidRequestError as error:
            return error.message
        return None

    def _judged(self, verdicts: Mapping[int, Row]) -> None:
        self.attempt.retried(lambda: studies.judge(self.engine, self.lease, verdicts))
        self.attempt.wake()

    def _verdicts(
        self, numbers: Sequence[int], rung: int, shares: Sequence[float]
    ) -> dict[int, dict[str, Any]]:
        """Return the columns of the trials' rows after a rung."""
        if not self._sets:
            return {n: {"status": "complete", "rungs": 1, "scores": {}} for n in numbers}
        failed = self._refresh([f"#{number}" for number in numbers])
        running = {n: self._of(f"#{n}") for n in numbers if f"#{n}" not in failed}
        systems = {name: self._of(name) for name in self.study.systems}
        complete = {
            int(trial["number"]): self._of(f"#{trial['number']}")
            for trial in self.rows()
            if trial["status"] == "complete" and trial["scores"]["feasible"]
        }
        found = judge(self.study, running, complete, systems, shares[rung])
        is_last = rung == len(shares) - 1
        columns: dict[int, dict[str, Any]] = {}
        for number in numbers:
            if number not in found:
                columns[number] = {"status": "failed", "reason": failed[f"#{number}"]}
                continue
            verdict = found[number]
            status = "complete" if is_last else "stopped" if verdict.reason else "running"
            objectives = verdict.objectives
            told = expected(self.study, running[number], systems)
            columns[number] = {
                "status": status,
                "reason": None if is_last else verdict.reason,
                "rungs": rung + 1,
                "scores": {
                    "fraction": shares[rung],
                    "objectives": list(objectives) if objectives else None,
                    "expected": list(told) if told else None,
                    "violations": list(verdict.violations),
                    "feasible": verdict.feasible,
                    "sets": running[number].counts(),
                },
            }
        return columns

    def _refresh(self, systems: Iterable[str]) -> dict[str, str]:
        """Score what was decoded since; return why systems failed."""
        names = [*self.study.systems, *systems]
        names += [
            f"#{trial['number']}"
            for trial in self.rows()
            if trial["status"] == "complete" and f"#{trial['number']}" not in self._scores
        ]
        unread = [name for name in names if name not in self.study.systems or not self._knows(name)]
        failed = {}
        for row in self.attempt.retried(
            lambda: studies.results(self.engine, self.lease.id, unread)
        ):
            if row["result"] is None:
                failed[row["system"]] = f"{row['dataset']}: {row['error']['message']}"
                continue
            key = row["system"], row["dataset"], row["rung"]
            if key not in self._read:
                self._read.add(key)
                for evaluated in studies.unpack(row):
                    self._of(row["system"]).add(evaluated)
        return failed

    def _of(self, system: str) -> Scores:
        return self._scores.setdefault(system, Scores())

    def _knows(self, system: str) -> bool:
        return len(self._of(system).errors) == len(self._sets)
