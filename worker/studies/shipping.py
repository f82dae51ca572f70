"""Makes a study's kept trials ordinary merges, evaluates them on the test sets, ships the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection

from app.contract.errors import UndefinedMergeError
from app.contract.identifiers import merge_uri
from app.contract.states import FINAL
from app.services.preparation import replan
from app.storage import evaluations, merges, studies
from app.storage.database import writing
from app.storage.leases import JobKind, take
from worker.attempts import Attempt, attempt_lease
from worker.evaluation.runner import EvaluationStoppedError
from worker.evaluation_job import do_evaluation
from worker.merge_job import do_merge
from worker.studies.decoder import StudyDecoder

# How often the lead checks whether other workers have finished.
_WAIT_SECONDS = 0.1
_IN_VAIN = frozenset({"failed", "cancelled"})

Row = Mapping[Any, Any]


def make_merges(
    attempt: Attempt, decoder: StudyDecoder, trials: Mapping[int, Row], outcome: dict[str, Any]
) -> None:
    """Make the kept trials ordinary merges, and note them in the outcome.

    A merge that an earlier attempt or an earlier search made counts, if it still exists.
    UndefinedMergeError if one cannot be made.
    """
    engine = attempt.engine
    numbers = [one["trial"] for one in outcome["kept"]]

    def create() -> None:
        with writing(engine) as connection:
            row = studies.hold(connection, attempt.lease)
            known = {n: trials[n]["merge_id"] for n in numbers if trials[n]["merge_id"]}
            usable = merges.usable(connection, known.values())
            fresh = {
                n: _create(connection, row["id"], decoder, trials[n])
                for n in numbers
                if known.get(n) not in usable
            }
            for one in outcome["kept"]:
                one["merge_id"] = (known | fresh)[one["trial"]]
            _adopt_evaluations(outcome, row["outcome"] or {})
            studies.keep(connection, attempt.lease, fresh, outcome)

    attempt.retried(create)
    wanted = [one["merge_id"] for one in outcome["kept"]]
    _finish_all(attempt, JobKind.MERGE, wanted, do_merge, partial(merges.get, engine))
    for one in outcome["kept"]:
        row = attempt.retried(partial(merges.get, engine, one["merge_id"]))
        if row is None or row["status"] != "succeeded":
            why = (row["error"] or {}).get("message", row["status"]) if row else "deleted"
            raise UndefinedMergeError(
                f"The merge {one['merge_id']} of #{one['trial']} was not made: {why}"
            )


def evaluate_merges(attempt: Attempt, decoder: StudyDecoder, outcome: dict[str, Any]) -> None:
    """Evaluate the kept merges on the test sets, compared with each other."""
    engine, request = attempt.engine, decoder.study.request
    uris = [merge_uri(one["merge_id"]) for one in outcome["kept"]]

    def create() -> None:
        with writing(engine) as connection:
            studies.hold(connection, attempt.lease)
            for one, own in zip(outcome["kept"], uris, strict=True):
                if one["evaluation_id"] is None:
                    others = tuple(uri for uri in uris if uri != own)
                    judged = one["trial"] == outcome["winner"]
                    spec = request.evaluation(others, judged=judged).model_dump(mode="json")
                    one["evaluation_id"] = evaluations.create(connection, one["merge_id"], spec)
            studies.keep(connection, attempt.lease, {}, outcome)

    attempt.retried(create)
    wanted = [one["evaluation_id"] for one in outcome["kept"]]
    get = partial(evaluations.get, engine)
    _finish_all(attempt, JobKind.EVALUATION, wanted, do_evaluation, get)


def shipped(attempt: Attempt, winner: Row) -> tuple[str | None, str | None]:
    """Return the merge to ship, or None and why its test does not allow it."""
    if winner["evaluation_id"] is None:
        return winner["merge_id"], None
    row = attempt.retried(partial(evaluations.get, attempt.engine, winner["evaluation_id"]))
    if row is None or row["status"] in _IN_VAIN:
        why = (row["error"] or {}).get("message", row["status"]) if row else "deleted"
        return None, f"The best merge could not be measured on the test sets: {why}"
    if row["verdict"] and not row["verdict"]["passed"]:
        failures = "; ".join(one["message"] for one in row["verdict"]["failures"])
        return None, f"The best merge does not pass the gate: {failures}"
    return winner["merge_id"], None


def _adopt_evaluations(outcome: dict[str, Any], earlier: Mapping[str, Any]) -> None:
    """Take over the evaluations of an earlier attempt, if it kept the same merges."""
    known = {one["merge_id"]: one["evaluation_id"] for one in earlier.get("kept", ())}
    mine = {one["merge_id"] for one in outcome["kept"]}
    if known.keys() == mine and earlier.get("winner") == outcome["winner"]:
        for one in outcome["kept"]:
            one["evaluation_id"] = known[one["merge_id"]]


def _create(connection: Connection, study_id: str, decoder: StudyDecoder, trial: Row) -> str:
    request = decoder.study.request
    parsed = decoder.study.parsed(trial["candidate"], trial["point"])
    name = f"{request.name or study_id} #{trial['number']}"[-200:]
    metadata = {**request.metadata, "study": study_id, "trial": str(trial["number"])}
    document = parsed.request.model_copy(update={"name": name, "metadata": metadata})
    planned = replan(decoder.prepared, parsed.recipe)
    return merges.create(
        connection,
        name=name,
        request=document.model_dump(mode="json"),
        recipe=parsed.recipe.model_dump(mode="json"),
        sources=planned.sources(),
        warnings=planned.warnings,
    )


def _finish_all(
    attempt: Attempt,
    kind: JobKind,
    wanted: Sequence[str],
    work: Callable[[Attempt], None],
    get: Callable[[str], Row | None],
) -> None:
    """Run queued jobs, one after another; wait for those that other workers took."""
    engine, settings = attempt.engine, attempt.settings
    for job_id in wanted:
        while (row := attempt.retried(partial(get, job_id))) is not None:
            if row["status"] in FINAL:
                break
            lease = None
            if row["status"] == "queued":
                lease = take(engine, kind, job_id, attempt.lease.owner, settings.lease_seconds)
            if lease is not None:
                attempt_lease(engine, lease, settings, attempt.worker_id, work)
            if attempt.keeper.stopping.wait(_WAIT_SECONDS):
                raise EvaluationStoppedError
