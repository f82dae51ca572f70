"""The study job: one worker leads and decides, all idle workers decode.

Everything that was decided is in the database, so that a worker that takes over goes on where the
last one stopped, with the same decisions.
"""

from __future__ import annotations

from typing import Any

from app.contract.errors import EvaluationFailedError
from app.contract.evaluation import DatasetSpec
from app.contract.states import StudyPhase
from app.sources.datasets import read_dataset
from app.sources.manifests import Manifest
from app.storage import merges, studies
from app.storage.database import writing
from app.storage.leases import finish
from app.storage.studies import PlannedPiece
from worker.attempts import Attempt
from worker.evaluation.disjoint import refuse_shared
from worker.evaluation_parts import device_type_of
from worker.studies.decoder import StudyDecoder
from worker.studies.outcome import outcome_of
from worker.studies.pieces import decode_all, decoder_of
from worker.studies.shipping import evaluate_merges, make_merges, shipped
from worker.studies.trials import Trials


def do_study(attempt: Attempt) -> None:
    """Run the study of the attempt's lease to its end."""
    decoder = decoder_of(attempt, attempt.lease.id)
    try:
        _begin(attempt, StudyPhase.PREPARING)
        _prepare(attempt, decoder)
        if decoder.study.request.development is not None:
            _begin(attempt, StudyPhase.REFERENCES)
            _measure_systems(attempt, decoder)
        trials = Trials(attempt, decoder)
        while not _finished(attempt, decoder, trials):
            pass  # extended while it merged or tested
    finally:
        decoder.close()


def _begin(attempt: Attempt, phase: StudyPhase) -> None:
    attempt.retried(lambda: merges.set_phase(attempt.engine, attempt.lease, phase.value))
    attempt.wake()


def _prepare(attempt: Attempt, decoder: StudyDecoder) -> None:
    """Fetch the sources, check the sets, and record what all workers must agree on."""
    request, earlier = decoder.study.request, decoder.sources
    development = request.development.datasets if request.development else ()
    manifests = {one.name: decoder.manifest(one) for one in development}
    heard = decoder.calibration.manifests if decoder.calibration else {}
    if request.test is not None and (manifests or heard):
        tested = {one.name: _test_manifest(decoder, one) for one in request.test.datasets}
        roots = decoder.policy.file_roots
        refuse_shared(manifests, tested, roots)
        refuse_shared(heard, tested, roots, called="Calibration")
    sources = decoder.prepared.sources([local.sha256 for local in decoder.locals])
    sources["references"] = earlier["references"]
    sources["manifests"] = {name: one.manifest_sha256 for name, one in manifests.items()}
    decoder.sources = sources
    kind = device_type_of(attempt.settings)

    def begin() -> str:
        with writing(attempt.engine) as connection:
            row = studies.hold(connection, attempt.lease)
        known = str(row["device_type"] or kind)
        if known == kind:
            studies.begin(attempt.engine, attempt.lease, kind, sources)
        return known

    known = attempt.retried(begin)
    if known != kind:
        raise EvaluationFailedError(
            f"The study began on {known}, and this worker decodes on {kind}; "
            "results from both are not comparable. Start a worker of the first kind."
        )


def _test_manifest(decoder: StudyDecoder, dataset: DatasetSpec) -> Manifest:
    param, stopping = f"test set {dataset.name}", decoder.should_stop
    return read_dataset(dataset.uri, decoder.policy, param=param, should_stop=stopping)


def _measure_systems(attempt: Attempt, decoder: StudyDecoder) -> None:
    """Decode the development sets with the base, the experts and the references."""
    planned = [
        PlannedPiece(system, one.name, 0, len(decoder.manifest(one).utterances))
        for system in decoder.study.systems
        for one in decoder.development.datasets
    ]
    decode_all(attempt, decoder, planned)


def _finished(attempt: Attempt, decoder: StudyDecoder, trials: Trials) -> bool:
    """Search, merge, test and end the study; return False if it got a larger budget meanwhile."""
    _begin(attempt, StudyPhase.SEARCHING)
    budget = trials.run()
    rows = trials.rows()
    outcome = outcome_of(decoder.study, rows)
    if outcome["kept"]:
        _begin(attempt, StudyPhase.MERGING)
        make_merges(attempt, decoder, {int(row["number"]): row for row in rows}, outcome)
        if decoder.study.request.test is not None:
            _begin(attempt, StudyPhase.TESTING)
            evaluate_merges(attempt, decoder, outcome)
    winner = next((one for one in outcome["kept"] if one["trial"] == outcome["winner"]), None)
    if winner is not None:
        outcome["shipped"], outcome["reason"] = shipped(attempt, winner)
    values: dict[str, Any] = {"outcome": outcome, "phase": None, "progress_total": len(rows)}

    def end() -> bool:
        with writing(attempt.engine) as connection:
            row = studies.hold(connection, attempt.lease)
            if (row["trials"], row["seconds"]) != budget:
                return False
            finish(connection, attempt.lease, "succeeded", values)
            return True

    is_over = attempt.retried(end)
    attempt.wake()
    return is_over
