"""Decodes a study's pieces: a system on a rung's share of a set, or of all sets, each.

The lead plans them and waits until all are over; it and the workers that help take one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.contract.errors import (
    EvaluationFailedError,
    OutputOverflowError,
    UndefinedMergeError,
)
from app.contract.evaluation import EvaluatedDataset
from app.contract.recipe import Recipe
from app.services.studies import study_of
from app.storage import studies
from app.storage.leases import LeaseLostError
from app.storage.studies import ALL_SETS, Piece, PlannedPiece
from worker.attempts import Attempt
from worker.evaluation.runner import EvaluationStoppedError
from worker.evaluation_parts import device_type_of
from worker.invitations import invite
from worker.merging.local import choose_device
from worker.studies.decoder import StudyDecoder

# How often the lead checks whether other workers have finished.
_WAIT_SECONDS = 0.1
# A point that has no merge: others may have one. Other errors are not the point's.
_OF_A_POINT = (OutputOverflowError, UndefinedMergeError)


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
            self._decoder = decoder_of(attempt, piece.study_id)
        self._decoder.stopping = attempt.keeper.stopping
        found = _decode(attempt, self._decoder, piece)
        if skipped := [one for evaluated in found for one in evaluated.result.skipped]:
            raise EvaluationFailedError(
                f"{piece.system} on {piece.dataset}: this worker cannot decode {len(skipped)} "
                f"utterances, first {skipped[0].audio} ({skipped[0].reason}); the study's lead "
                "tries again. Give all workers the same AFLUENTE_FILE_ROOTS and mounts."
            )
        _store(attempt, piece, found)


def decoder_of(attempt: Attempt, study_id: str) -> StudyDecoder:
    """Return a decoder for a study; LeaseLostError if the study was deleted."""
    row = attempt.retried(lambda: studies.get(attempt.engine, study_id))
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


def decode_all(attempt: Attempt, decoder: StudyDecoder, planned: Sequence[PlannedPiece]) -> None:
    """Decode the pieces of the study that the attempt leads; return when all are over.

    A piece whose trial has no merge fails alone. Raises the errors of everything else: of sources,
    of memory, of base, experts and references.
    """
    engine, study_id = attempt.engine, attempt.lease.id
    attempt.retried(lambda: studies.add_pieces(engine, attempt.lease, planned))
    attempt.retried(lambda: invite(engine, attempt.queue))
    while any(counts := attempt.retried(lambda: studies.open_pieces(engine, study_id))):
        piece = _claim(attempt, decoder) if counts[0] else None
        if piece is not None:
            _lead(attempt, decoder, piece)
        elif attempt.keeper.stopping.wait(_WAIT_SECONDS):
            raise EvaluationStoppedError


def _claim(attempt: Attempt, decoder: StudyDecoder) -> Piece | None:
    lease, settings = attempt.lease, attempt.settings
    return attempt.retried(
        lambda: studies.claim(
            attempt.engine,
            lease.id,
            lease.owner,
            settings.lease_seconds,
            device_type_of(settings),
            loaded=decoder.loaded,
            leading=True,
        )
    )


def _lead(attempt: Attempt, decoder: StudyDecoder, piece: Piece) -> None:
    try:
        with attempt.keeper.holding(piece.lease):
            try:
                _store(attempt, piece, _decode(attempt, decoder, piece))
            except _OF_A_POINT as error:
                record = error.as_record()
                attempt.retried(lambda: studies.fail_piece(attempt.engine, piece, record))
    except LeaseLostError:
        pass  # stored with a lost response, or taken by another worker


def _decode(attempt: Attempt, decoder: StudyDecoder, piece: Piece) -> list[EvaluatedDataset]:
    """Return a piece's results, one for each of its sets."""
    sets = [one for one in decoder.development.datasets if piece.dataset in {one.name, ALL_SETS}]
    if not piece.system.startswith("#"):
        return [decoder.decode_system(piece.system, dataset) for dataset in sets]
    number = int(piece.system[1:])
    (trial,) = attempt.retried(
        lambda: studies.trial_page(attempt.engine, piece.study_id, start=number, size=1)
    )
    recipe = Recipe.model_validate(trial["recipe"])
    return [decoder.decode_trial(piece.system, recipe, one, piece.rung) for one in sets]


def _store(attempt: Attempt, piece: Piece, found: Sequence[EvaluatedDataset]) -> None:
    attempt.retried(lambda: studies.finish_piece(attempt.engine, piece, found))
