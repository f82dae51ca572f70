"""The evaluation job: one worker leads and ends it, all idle workers decode its parts."""

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
from worker.evaluation_parts import PartDecoder, device_type_of
from worker.invitations import invite

_LOG = logging.getLogger(__name__)
# How often the lead checks whether other workers have finished their parts.
_WAIT_SECONDS = 0.1


def do_evaluation(attempt: Attempt) -> None:
    """Decode the evaluation's parts together with other workers; end it when all are done."""
    engine, lease = attempt.engine, attempt.lease
    decoder = PartDecoder.of(attempt.settings, engine, lease.id)
    device_type = device_type_of(attempt.settings)
    if not attempt.retried(lambda: parts.are_planned(engine, lease.id, device_type)):
        planned = decoder.divide(attempt.keeper.stopping.is_set)
        attempt.retried(lambda: parts.plan(engine, lease, device_type, planned))
    with _tolerant(attempt):
        invite(engine, attempt.queue)
    while (statuses := _statuses(attempt)) is None or statuses.keys() & OPEN:
        part = _claim(attempt, device_type) if statuses and statuses["queued"] else None
        if part is not None:
            try:
                with attempt.keeper.holding(part.lease):
                    _store(attempt, part, _decode(attempt, decoder, part))
            except LeaseLostError:
                # Stored with a lost response, or taken by another worker: its status shows.
                _LOG.info("%s: lost its lease", part.lease.id)
        elif attempt.keeper.stopping.wait(_WAIT_SECONDS):
            raise EvaluationStoppedError
    _settle(attempt, decoder, statuses)


def _statuses(attempt: Attempt) -> Counter[str] | None:
    """Return the number of parts by status; None if the database does not respond."""
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
    """Ignore a database that does not respond; the keeper ends the job if the lease is lost."""
    try:
        yield
    except AWAY as error:
        _LOG.warning("%s: the database did not respond: %s", attempt.lease.id, error)


class PartWork:
    """The work on parts of an evaluation that another worker leads; keeps fetched inputs."""

    def __init__(self) -> None:
        self._decoder: PartDecoder | None = None

    def __call__(self, part: Part, attempt: Attempt) -> None:
        """Decode the part and store its result.

        EvaluationFailedError if utterances were skipped: the lead may be able to read them, and
        finds the others in the cache.
        """
        if self._decoder is None:
            self._decoder = PartDecoder.of(attempt.settings, attempt.engine, part.evaluation_id)
        evaluated = _decode(attempt, self._decoder, part)
        if skipped := evaluated.result.skipped:
            raise EvaluationFailedError(
                f"{part.system} on {part.dataset}: this worker cannot decode {len(skipped)} "
                f"utterances, first {skipped[0].audio} ({skipped[0].reason}); the evaluation's "
                "lead tries again. Give all workers the same AFLUENTE_FILE_ROOTS and mounts."
            )
        _store(attempt, part, evaluated)


def _decode(attempt: Attempt, decoder: PartDecoder, part: Part) -> EvaluatedDataset:
    def report(done: int, _: int) -> None:
        parts.set_progress(attempt.engine, part, done)

    throttled = attempt.throttled(report)

    def progress(done: int, total: int) -> None:
        if done < total:  # the last step is recorded with the result
            throttled(done, total)

    return decoder.decode(part, progress, attempt.keeper.stopping.is_set)


def _store(attempt: Attempt, part: Part, evaluated: EvaluatedDataset) -> None:
    document = evaluated.model_dump(mode="json")
    utterances = document["result"].pop("utterances")

    def store() -> None:
        parts.finish(attempt.engine, part, evaluated.result.status, document, utterances)

    attempt.retried(store)
    attempt.wake()


def _settle(attempt: Attempt, decoder: PartDecoder, statuses: Counter[str]) -> None:
    lease = attempt.lease
    if set(statuses) == {"failed"}:
        raise EvaluationFailedError(
            "No utterance of any dataset could be decoded; see `skipped` in the merge's wer."
        )
    status = "succeeded" if set(statuses) == {"succeeded"} else "partial"

    def settle() -> None:
        verdict = decide(attempt.engine, lease.topic, lease.id, decoder.spec, status)
        with writing(attempt.engine) as connection:
            finish(connection, lease, status, {"verdict": verdict})

    attempt.retried(settle)
