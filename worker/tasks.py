"""The Celery tasks: each takes a row's lease and runs its job."""

from __future__ import annotations

from app.contract.tasks import EVALUATE_TASK, MERGE_TASK, STUDY_TASK
from app.storage.leases import JobKind
from worker.attempts import attempt_job, attempt_parts, attempt_pieces
from worker.celery_app import SETTINGS, WORKER_ID, app
from worker.evaluation_job import PartWork, do_evaluation
from worker.evaluation_parts import device_type_of
from worker.merge_job import do_merge
from worker.studies.pieces import PieceWork
from worker.study_job import do_study

_WORKS = {
    JobKind.MERGE: do_merge,
    JobKind.EVALUATION: do_evaluation,
    JobKind.STUDY: do_study,
}


@app.task(name=MERGE_TASK)
def merge(merge_id: str) -> None:
    """Run a queued merge."""
    attempt_job(JobKind.MERGE, merge_id, SETTINGS, WORKER_ID, _WORKS)


@app.task(name=EVALUATE_TASK)
def evaluate(evaluation_id: str) -> None:
    """Run a queued evaluation, or help with one that another worker leads."""
    if not attempt_job(JobKind.EVALUATION, evaluation_id, SETTINGS, WORKER_ID, _WORKS):
        device_type = device_type_of(SETTINGS)
        attempt_parts(evaluation_id, SETTINGS, WORKER_ID, device_type, PartWork())


@app.task(name=STUDY_TASK)
def study(study_id: str) -> None:
    """Run a queued study, or help with one that another worker leads."""
    if not attempt_job(JobKind.STUDY, study_id, SETTINGS, WORKER_ID, _WORKS):
        device_type, work = device_type_of(SETTINGS), PieceWork()
        attempt_pieces(study_id, SETTINGS, WORKER_ID, device_type, work, work.loaded)
