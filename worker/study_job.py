"""The study job: one worker leads and decides, all idle workers decode.

Everything that was decided is in the database, so that a worker that takes over goes on where the
last one stopped, with the same decisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Connection

from app.contract.errors import (
    EvaluationFailedError,
    InvalidManifestError,
    OutputOverflowError,
    Problem,
    UndefinedMergeError,
)
from app.contract.evaluation import DatasetSpec, EvaluatedDataset
from app.contract.identifiers import merge_uri
from app.contract.recipe import Recipe
from app.contract.states import FINAL, StudyPhase
from app.services.preparation import replan
from app.services.studies import study_of
from app.sources.datasets import manifest_roots, resolve_dataset
from app.sources.manifests import Manifest, read_manifest
from app.sources.shared_audio import MOST_SHOWN, shared
from app.storage import evaluations, merges, studies
from app.storage.database import clock, writing
from app.storage.leases import JobKind, LeaseLostError, finish, take
from app.storage.studies import ALL_SETS, Piece, PlannedPiece
from worker.attempts import Attempt, attempt_lease
from worker.evaluation.audio import AudioError, find_segment, inspect, read_segment
from worker.evaluation.runner import EvaluationStoppedError
from worker.evaluation_job import do_evaluation
from worker.evaluation_parts import device_type_of
from worker.invitations import invite
from worker.merge_job import do_merge
from worker.merging.local import choose_device
from worker.studies.decoder import StudyDecoder
from worker.studies.racing import Scores, front, judge, objectives_of, rungs
from worker.studies.search import Search, Tried, importance

# How often the lead checks whether other workers have finished.
_WAIT_SECONDS = 0.1
# A rung with fewer utterances is one piece, so that claiming and storing stay cheap.
_LEAST_UTTERANCES = 32

T = TypeVar("T")


def do_study(attempt: Attempt) -> None:
    """Run the study of the attempt's lease to its end."""
    lead = _Lead(attempt)
    try:
        lead.run()
    finally:
        lead.close()


class PieceWork:
    """The work on pieces of a study that another worker leads; keeps models and inputs."""

    def __init__(self) -> None:
        self._decoder: StudyDecoder | None = None

    def loaded(self) -> str | None:
        """Return the system whose weights are loaded."""
        return self._decoder.loaded if self._decoder else None

    def __call__(self, piece: Piece, attempt: Attempt) -> None:
        """Decode the piece and store its result.

        EvaluationFailedError if utterances were skipped: the lead may be able to read them.
        """
        if self._decoder is None:
            self._decoder = _decoder_of(attempt, piece.study_id)
        self._decoder.stopping = attempt.keeper.stopping
        found = _decode(attempt, self._decoder, piece)
        skipped = [one for evaluated in found for one in evaluated.result.skipped]
        if skipped:
            raise EvaluationFailedError(
                f"{piece.system} on {piece.dataset}: this worker cannot decode {len(skipped)} "
                f"utterances, first {skipped[0].audio} ({skipped[0].reason}); the study's lead "
                "tries again. Give all workers the same AFLUENTE_FILE_ROOTS and mounts."
            )
        _store(attempt, piece, found)


class _Lead:
    """The worker that chooses trials, judges them, and turns the best into merges."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt, self.engine, self.lease = attempt, attempt.engine, attempt.lease
        self.decoder = _decoder_of(attempt, attempt.lease.id)
        self.study = self.decoder.study
        self.search = Search(self.study)
        self._device_type = device_type_of(attempt.settings)
        self._scores: dict[str, Scores] = {}
        self._read: set[tuple[str, str, int]] = set()
        self._budget: tuple[int, float | None] = (0, None)

    @property
    def _sets(self) -> tuple[DatasetSpec, ...]:
        development = self.study.request.development
        return development.datasets if development else ()

    def close(self) -> None:
        """Release what the decoder holds."""
        self.decoder.close()

    def run(self) -> None:
        """Search, merge, test, and end the study."""
        self._phase(StudyPhase.PREPARING)
        self._prepare()
        if self._sets:
            self._phase(StudyPhase.REFERENCES)
            self._measure_systems()
        while not self._end(self._found()):
            pass  # extended while the merges were made and tested

    def _found(self) -> dict[str, Any]:
        """Search, make merges of the best trials and test them; return the outcome."""
        self._phase(StudyPhase.SEARCHING)
        self._search()
        outcome = self._outcome()
        if outcome["kept"]:
            self._phase(StudyPhase.MERGING)
            outcome = self._merge(outcome)
            if self.study.request.test is not None:
                self._phase(StudyPhase.TESTING)
                outcome = self._test(outcome)
        return outcome

    # Preparing

    def _prepare(self) -> None:
        """Fetch the sources, check the sets, and record what all workers must agree on."""
        decoder, test = self.decoder, self.study.request.test
        manifests = {one.name: decoder.manifest(one) for one in self._sets}
        if test is not None and manifests:
            tested = {one.name: self._manifest(one) for one in test.datasets}
            _refuse_shared(manifests, tested, decoder.policy.file_roots)
        sources = decoder.prepared.sources([local.sha256 for local in decoder.locals])
        sources["references"] = decoder.sources["references"]
        sources["manifests"] = {name: one.manifest_sha256 for name, one in manifests.items()}
        decoder.sources = sources
        kind, row = self._device_type, self._row()
        if row["device_type"] not in {None, kind}:
            raise EvaluationFailedError(
                f"The study began on {row['device_type']}, and this worker decodes on {kind}; "
                "results from both are not comparable. Start a worker of the first kind."
            )
        self._retried(lambda: studies.begin(self.engine, self.lease, kind, sources))

    def _manifest(self, dataset: DatasetSpec) -> Manifest:
        policy = self.decoder.policy
        path = resolve_dataset(dataset.uri, policy, param=f"test set {dataset.name}")
        return read_manifest(path, label=dataset.uri, roots=manifest_roots(path, policy))

    def _row(self) -> Mapping[Any, Any]:
        row = studies.get(self.engine, self.lease.id)
        if row is None:
            raise LeaseLostError(self.lease.id)
        return row

    # Decoding

    def _measure_systems(self) -> None:
        """Decode the development sets with the base, the experts and the references."""
        planned = [
            PlannedPiece(system, one.name, 0, len(self.decoder.manifest(one).utterances))
            for system in self.study.systems
            for one in self._sets
        ]
        self._decode_all(planned)
        self._refresh([])
        if objectives_of(self.study, self._of(self.study.systems[0])) is None:
            raise EvaluationFailedError(
                "The development sets of an objective have no reference words: no trial could be "
                "rated. Choose another objective, or sets with words."
            )

    def _decode_all(self, planned: Sequence[PlannedPiece]) -> None:
        """Decode pieces together with other workers; return when all are over."""
        engine, study_id = self.engine, self.lease.id
        self._retried(lambda: studies.add_pieces(engine, self.lease, planned))
        invite(engine, self.attempt.queue)
        while any(counts := self._retried(lambda: studies.open_pieces(engine, study_id))):
            piece = self._claim() if counts[0] else None
            if piece is not None:
                self._work_on(piece)
            elif self.attempt.keeper.stopping.wait(_WAIT_SECONDS):
                raise EvaluationStoppedError

    def _claim(self) -> Piece | None:
        seconds, owner = self.attempt.settings.lease_seconds, self.lease.owner
        return self._retried(
            lambda: studies.claim(
                self.engine,
                self.lease.id,
                owner,
                seconds,
                self._device_type,
                loaded=self.decoder.loaded,
                leading=True,
            )
        )

    def _work_on(self, piece: Piece) -> None:
        attempt = self.attempt
        try:
            with attempt.keeper.holding(piece.lease):
                try:
                    _store(attempt, piece, _decode(attempt, self.decoder, piece))
                except (OutputOverflowError, UndefinedMergeError) as error:
                    # This point has no merge; others may have. Other errors are not the point's.
                    record = error.as_record()
                    self._retried(lambda: studies.fail_piece(self.engine, piece, record))
        except LeaseLostError:
            pass  # stored with a lost response, or taken by another worker

    # Searching

    def _search(self) -> None:
        """Try merges until the budget is used up; first finish the trials that are running."""
        self._race([trial for trial in self._trials() if trial["status"] == "running"])
        while (count := self._left()) > 0:
            past = self._trials()
            chosen = self.search.choose([self._tried(trial) for trial in past], count)
            if not chosen:
                return
            batch = 1 + max((trial["batch"] for trial in past), default=-1)
            planned = []
            for number, choice in enumerate(chosen, len(past)):
                recipe = self.study.parsed(choice.candidate, choice.values).recipe
                planned.append(
                    {
                        "number": number,
                        "batch": batch,
                        "candidate": choice.candidate,
                        "point": dict(choice.values),
                        "recipe": recipe.model_dump(mode="json"),
                    }
                )
            self._retried(partial(self._add, planned))
            self._race(planned)

    def _add(self, planned: Sequence[Mapping[str, Any]]) -> None:
        known = len(studies.trials(self.engine, self.lease.id))
        fresh = [trial for trial in planned if trial["number"] >= known]
        studies.add_trials(self.engine, self.lease, fresh)

    def _left(self) -> int:
        """Return how many trials may start now."""
        row = self._row()
        self._budget = row["trials"], row["seconds"]
        trials, seconds = self._trials(), row["seconds"]
        if seconds is not None and studies.seconds_used(trials, clock(self.engine)) > seconds:
            return 0
        return int(min(self.study.request.search.batch, row["trials"] - len(trials)))

    def _race(self, batch: Sequence[Mapping[Any, Any]]) -> None:
        """Decode trials rung by rung; after each, end those that are not worth going on."""
        if not batch:
            return
        shares = rungs(self.study) if self._sets else (1.0,)
        going = {int(trial["number"]): int(trial.get("rungs", 0)) for trial in batch}
        for rung in range(min(going.values()), len(shares)):
            here = [number for number, done in going.items() if done <= rung]
            shared = self._divided(rung)
            self._decode_all(
                [
                    PlannedPiece(f"#{number}", name, rung, count)
                    for number in here
                    for name, count in shared.items()
                ]
            )
            verdicts = self._verdicts(here, rung, shares)
            self._retried(partial(studies.judge, self.engine, self.lease, verdicts))
            self.attempt.wake()
            going = {n: rung + 1 for n in here if verdicts[n]["status"] == "running"}
            if not going:
                return

    def _divided(self, rung: int) -> dict[str, int]:
        """Return a rung's pieces: sets with their utterances; few utterances are one piece."""
        counts = {one.name: len(self.decoder.part(one, rung).utterances) for one in self._sets}
        total = sum(counts.values())
        if total < _LEAST_UTTERANCES:
            return {ALL_SETS: total} if total else {}
        return {name: count for name, count in counts.items() if count}

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
            for trial in self._trials()
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
            columns[number] = {
                "status": status,
                "reason": None if is_last else verdict.reason,
                "rungs": rung + 1,
                "scores": {
                    "fraction": shares[rung],
                    "objectives": list(objectives) if objectives else None,
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
            for trial in self._trials()
            if trial["status"] == "complete" and f"#{trial['number']}" not in self._scores
        ]
        unread = [name for name in names if name not in self.study.systems or not self._knows(name)]
        failed = {}
        for row in self._retried(lambda: studies.results(self.engine, self.lease.id, unread)):
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

    def _trials(self) -> list[Any]:
        return self._retried(lambda: studies.trials(self.engine, self.lease.id))

    def _tried(self, trial: Mapping[Any, Any]) -> Tried:
        scores = trial["scores"]
        objectives = scores.get("objectives")
        return Tried(
            batch=trial["batch"],
            candidate=trial["candidate"],
            values=trial["point"],
            scores=tuple(objectives) if objectives and trial["status"] != "failed" else None,
            violations=tuple(scores.get("violations", ())),
        )

    # The outcome

    def _outcome(self) -> dict[str, Any]:
        """Return which trials are kept, and which one is best."""
        trials = self._trials()
        request = self.study.request
        complete = [trial for trial in trials if trial["status"] == "complete"]
        if trials and not complete and all(trial["status"] == "failed" for trial in trials):
            raise UndefinedMergeError(f"Every trial failed; the first: {trials[0]['reason']}")
        if not self._sets:
            kept = [int(trial["number"]) for trial in complete]
            reason = "Without development sets nothing is chosen."
            return self._described(None, kept, [], reason)
        feasible = {
            int(trial["number"]): tuple(trial["scores"]["objectives"])
            for trial in complete
            if trial["scores"]["feasible"]
        }
        best = front(feasible)
        ranked = [*best, *sorted(feasible.keys() - set(best), key=lambda n: (feasible[n], n))]
        if len(self.study.measures) > 1 and not request.keeps_all:
            ranked = best
        if request.keep != "all":
            ranked = ranked[: request.keep]
        if not feasible:
            return self._described(None, [], [], self._why_none(trials, complete))
        return self._described(best[0], ranked, best, None)

    def _described(
        self, winner: int | None, kept: Sequence[int], best: Sequence[int], reason: str | None
    ) -> dict[str, Any]:
        tried = [self._tried(trial) for trial in self._trials()]
        return {
            "winner": winner,
            "shipped": None,
            "reason": reason,
            "front": list(best),
            "kept": [{"trial": number, "merge_id": None, "evaluation_id": None} for number in kept],
            "importance": importance(self.study, tried) if self._sets else {},
        }

    def _why_none(
        self, trials: Sequence[Mapping[Any, Any]], complete: Sequence[Mapping[Any, Any]]
    ) -> str:
        """Return why no trial can be shipped: the constraint that the best of them exceeds."""
        if not complete:
            return (
                "No trial was decoded to the end: each was stopped early, or failed. "
                f"#0: {trials[0]['reason']}."
            )
        nearest = min(complete, key=lambda trial: max(trial["scores"]["violations"], default=0.0))
        violations = nearest["scores"]["violations"]
        constraint, _ = self.study.limits[int(np.argmax(violations))]
        return (
            f"No trial meets all constraints. #{nearest['number']} comes nearest and exceeds the "
            f"one on {constraint.set} by {100 * max(violations):.1f} points."
        )

    # Merging and testing

    def _merge(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Make the kept trials ordinary merges."""
        trials = {int(trial["number"]): trial for trial in self._trials()}
        made = {n: trial["merge_id"] for n, trial in trials.items() if self._stands(trial)}
        stored = {
            one["trial"]: one["evaluation_id"] for one in self._row()["outcome"].get("kept", ())
        }

        def create() -> None:
            with writing(self.engine) as connection:
                fresh = {
                    one["trial"]: self._create(connection, trials[one["trial"]])
                    for one in outcome["kept"]
                    if one["trial"] not in made
                }
                made.update(fresh)
                for one in outcome["kept"]:
                    one["merge_id"] = made[one["trial"]]
                    one["evaluation_id"] = stored.get(one["trial"])
                studies.keep(connection, self.lease, fresh, outcome)

        self._retried(create)
        wanted = [one["merge_id"] for one in outcome["kept"]]
        self._finish_all(JobKind.MERGE, wanted, do_merge, lambda i: merges.get(self.engine, i))
        for one in outcome["kept"]:
            row = merges.get(self.engine, one["merge_id"])
            if row is None or row["status"] != "succeeded":
                why = (row["error"] or {}).get("message", row["status"]) if row else "deleted"
                raise UndefinedMergeError(
                    f"The merge {one['merge_id']} of #{one['trial']} was not made: {why}"
                )
        return outcome

    def _stands(self, trial: Mapping[Any, Any]) -> bool:
        """Return whether the trial has a merge, which was not deleted, cancelled or failed."""
        row = merges.get(self.engine, trial["merge_id"]) if trial["merge_id"] else None
        return row is not None and row["status"] in {"queued", "running", "succeeded"}

    def _create(self, connection: Connection, trial: Mapping[Any, Any]) -> str:
        request = self.study.request
        parsed = self.study.parsed(trial["candidate"], trial["point"])
        name = f"{request.name or self.lease.id} #{trial['number']}"
        metadata = {**request.metadata, "study": self.lease.id, "trial": str(trial["number"])}
        document = parsed.request.model_copy(update={"name": name[-200:], "metadata": metadata})
        planned = replan(self.decoder.prepared, parsed.recipe)
        return merges.create(
            connection,
            name=name[-200:],
            request=document.model_dump(mode="json"),
            recipe=parsed.recipe.model_dump(mode="json"),
            sources=planned.sources(),
            warnings=planned.warnings,
        )

    def _test(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Evaluate the kept merges on the test sets, compared with each other."""
        uris = [merge_uri(one["merge_id"]) for one in outcome["kept"]]

        def create() -> None:
            with writing(self.engine) as connection:
                for one, own in zip(outcome["kept"], uris, strict=True):
                    if one["evaluation_id"] is None:
                        others = tuple(uri for uri in uris if uri != own)
                        judged = one["trial"] == outcome["winner"]
                        spec = self.study.request.evaluation(others, judged=judged)
                        one["evaluation_id"] = evaluations.create(
                            connection, one["merge_id"], spec.model_dump(mode="json")
                        )
                studies.keep(connection, self.lease, {}, outcome)

        self._retried(create)
        wanted = [one["evaluation_id"] for one in outcome["kept"]]
        self._finish_all(
            JobKind.EVALUATION, wanted, do_evaluation, lambda i: evaluations.get(self.engine, i)
        )
        return outcome

    def _finish_all(
        self,
        kind: JobKind,
        wanted: Sequence[str],
        work: Callable[[Attempt], None],
        get: Callable[[str], Any],
    ) -> None:
        """Run queued jobs, one after another; wait for those that other workers took."""
        attempt = self.attempt
        for job_id in wanted:
            while (row := self._retried(partial(get, job_id))) is not None:
                if row["status"] in FINAL:
                    break
                lease = None
                if row["status"] == "queued":
                    seconds = attempt.settings.lease_seconds
                    lease = take(self.engine, kind, job_id, self.lease.owner, seconds)
                if lease is not None:
                    attempt_lease(self.engine, lease, attempt.settings, attempt.worker_id, work)
                if attempt.keeper.stopping.wait(_WAIT_SECONDS):
                    raise EvaluationStoppedError

    def _end(self, outcome: dict[str, Any]) -> bool:
        """Ship the winner, if its gate has passed; False if the study was extended meanwhile."""
        winner = next((o for o in outcome["kept"] if o["trial"] == outcome["winner"]), None)
        if winner is not None:
            outcome["shipped"], outcome["reason"] = self._shipped(winner)

        def end() -> bool:
            with writing(self.engine) as connection:
                row = studies.lock(connection, self.lease.id)
                if row is not None and (row["trials"], row["seconds"]) != self._budget:
                    studies.keep(connection, self.lease, {}, {})
                    return False
                finish(connection, self.lease, "succeeded", {"outcome": outcome, "phase": None})
                return True

        ended = self._retried(end)
        self.attempt.wake()
        return ended

    def _shipped(self, winner: Mapping[str, Any]) -> tuple[str | None, str | None]:
        row = (
            evaluations.get(self.engine, winner["evaluation_id"])
            if winner["evaluation_id"]
            else None
        )
        if row is None:
            return winner["merge_id"], None
        if row["status"] in {"failed", "cancelled"}:
            why = (row["error"] or {}).get("message", row["status"])
            return None, f"The best merge could not be measured on the test sets: {why}"
        if row["verdict"] and not row["verdict"]["passed"]:
            failures = "; ".join(one["message"] for one in row["verdict"]["failures"])
            return None, f"The best merge does not pass the gate: {failures}"
        return winner["merge_id"], None

    def _phase(self, phase: StudyPhase) -> None:
        self._retried(lambda: merges.set_phase(self.engine, self.lease, phase.value))
        self.attempt.wake()

    def _retried(self, call: Callable[[], T]) -> T:
        return self.attempt.retried(call)


def _decoder_of(attempt: Attempt, study_id: str) -> StudyDecoder:
    row = studies.get(attempt.engine, study_id)
    if row is None:
        raise LeaseLostError(study_id)
    return StudyDecoder(
        settings=attempt.settings,
        engine=attempt.engine,
        study=study_of(row),
        sources=dict(row["sources"]),
        device=choose_device(attempt.settings.device),
        stopping=attempt.keeper.stopping,
    )


def _decode(attempt: Attempt, decoder: StudyDecoder, piece: Piece) -> list[EvaluatedDataset]:
    """Return a piece's results, one for each of its sets."""
    sets = [one for one in decoder.development.datasets if piece.dataset in {one.name, ALL_SETS}]
    if not piece.system.startswith("#"):
        return [decoder.decode_system(piece.system, dataset) for dataset in sets]
    trials = studies.trial_page(attempt.engine, piece.study_id, start=int(piece.system[1:]), size=1)
    recipe = Recipe.model_validate(trials[0]["recipe"])
    return [decoder.decode_trial(piece.system, recipe, one, piece.rung) for one in sets]


def _store(attempt: Attempt, piece: Piece, found: Sequence[EvaluatedDataset]) -> None:
    attempt.retried(lambda: studies.finish_piece(attempt.engine, piece, found))


def _refuse_shared(
    development: Mapping[str, Manifest], test: Mapping[str, Manifest], roots: Any
) -> None:
    """Raise InvalidManifestError for recordings in both, also in another file format."""

    def seconds(path: Path) -> float | None:
        try:
            return round(inspect(path, roots).content.seconds, 3)
        except AudioError:
            return None

    def content(path: Path) -> str | None:
        try:
            samples = read_segment(find_segment(path, roots=roots))
            return hashlib.sha256(samples.tobytes()).hexdigest()
        except AudioError:
            return None

    messages = shared(development, test, seconds, content)
    if messages:
        more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
        problems = [Problem(message, "test") for message in messages[:MOST_SHOWN]]
        raise InvalidManifestError(
            f"Development and test sets share audio: {messages[0]}{more}. Take it out of one of "
            "them.",
            param="test",
            problems=problems,
        )
