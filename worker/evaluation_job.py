"""What workers do for an evaluation: one leads and settles it, all decode its parts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.contract.errors import EvaluationFailedError
from app.contract.evaluation import EvaluatedDataset
from app.contract.states import OPEN
from app.services.gates import decide
from app.storage import parts
from app.storage.database import AWAY, writing
from app.storage.leases import LeaseLostError, finish
from app.storage.parts import Part
from worker.attempts import Attempt
from worker.evaluation.runner import EvaluationStoppedError
from worker.evaluation_parts import Bench, device_type_of
from worker.invitations import invite

_LOG = logging.getLogger(__name__)
# How often the lead looks whether the others have done their last parts.
_WAIT_SECONDS = 0.1


def do_evaluation(attempt: Attempt) -> None:
    """Decode the evaluation's parts beside whoever else does, and settle it when all are done."""
    engine, lease = attempt.engine, attempt.lease
    bench = Bench.of(attempt.settings, engine, lease.id)
    device_type = device_type_of(attempt.settings)
    if not attempt.patiently(lambda: parts.are_planned(engine, lease.id, device_type)):
        planned = bench.divide()
        attempt.patiently(lambda: parts.plan(engine, lease, device_type, planned))
    with _tolerant(attempt):
        invite(engine, attempt.queue)
    while (statuses := _statuses(attempt)) is None or statuses.keys() & OPEN:
        part = _claim(attempt, device_type) if statuses and statuses["queued"] else None
        if part is not None:
            try:
                with attempt.keeper.holding(part.lease):
                    _store(attempt, part, _decode(attempt, bench, part))
            except LeaseLostError:
                # It is stored and the answer was lost, or another has it: its status will tell.
                _LOG.info("%s: no longer ours", part.lease.id)
        elif attempt.keeper.stopping.wait(_WAIT_SECONDS):
            raise EvaluationStoppedError
    _settle(attempt, bench, statuses)


def _statuses(attempt: Attempt) -> Counter[str] | None:
    """Return how many parts are in each status; None if the database does not answer."""
    with _tolerant(attempt):
        return parts.statuses(attempt.engine, attempt.lease.id)
    return None


def _claim(attempt: Attempt, device_type: str) -> Part | None:
    lease, seconds = attempt.lease, attempt.settings.lease_seconds
    with _tolerant(attempt):
        engine = attempt.engine
        return parts.claim(engine, lease.id, lease.owner, seconds, device_type, leading=True)
    return None


@contextmanager
def _tolerant(attempt: Attempt) -> Iterator[None]:
    """Go on without what the database does not tell; the keeper ends the job if the lease goes."""
    try:
        yield
    except AWAY as error:
        _LOG.warning("%s: the database did not answer: %s", attempt.lease.id, error)


class PartWork:
    """The work on a part that another worker leads; one a process, which keeps what it fetched."""

    def __init__(self) -> None:
        """Begin with nothing at hand."""
        self._bench: Bench | None = None

    def __call__(self, part: Part, attempt: Attempt) -> None:
        """Decode the part and store what came of it.

        EvaluationFailedError if anything was skipped: the lead may be able to read it, and finds
        the rest in the cache.
        """
        if self._bench is None:
            self._bench = Bench.of(attempt.settings, attempt.engine, part.evaluation_id)
        evaluated = _decode(attempt, self._bench, part)
        if skipped := evaluated.result.skipped:
            raise EvaluationFailedError(
                f"{part.system} on {part.dataset}: {len(skipped)} utterances cannot be decoded by "
                f"this worker, the first of them {skipped[0].audio} ({skipped[0].reason}); the "
                "evaluation's lead tries again. Give all workers the same AFLUENTE_FILE_ROOTS and "
                "mounts."
            )
        _store(attempt, part, evaluated)


def _decode(attempt: Attempt, bench: Bench, part: Part) -> EvaluatedDataset:
    def tell(done: int, _: int) -> None:
        parts.set_progress(attempt.engine, part, done)

    throttled = attempt.throttled(tell)

    def progress(done: int, total: int) -> None:
        if done < total:  # the last is told with the result
            throttled(done, total)

    return bench.decode(part, progress, attempt.keeper.stopping.is_set)


def _store(attempt: Attempt, part: Part, evaluated: EvaluatedDataset) -> None:
    document = evaluated.model_dump(mode="json")
    utterances = document["result"].pop("utterances")

    def store() -> None:
        parts.finish(attempt.engine, part, evaluated.result.status, document, utterances)

    attempt.patiently(store)
    attempt.wake()


def _settle(attempt: Attempt, bench: Bench, statuses: Counter[str]) -> None:
    lease = attempt.lease
    if set(statuses) == {"failed"}:
        raise EvaluationFailedError(
            "No utterance of any dataset could be decoded; GET the merge's wer and see `skipped`."
        )
    status = "succeeded" if set(statuses) == {"succeeded"} else "partial"

    def settle() -> None:
        verdict = decide(attempt.engine, lease.merge_id, lease.id, bench.spec, status)
        with writing(attempt.engine) as connection:
            finish(connection, lease, status, {"verdict": verdict})

    attempt.patiently(settle)
