"""The sweeper: re-sends lost messages, recovers jobs of dead workers, deletes leftovers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Engine

from app.contract.errors import OutOfMemoryError, WorkerLostError
from app.contract.settings import Settings
from app.storage import fleet, merges, parts
from app.storage.artifacts import ArtifactStore, merge_of
from app.storage.change_tracker import ChangeTracker
from app.storage.leases import Hold, JobKind, abandon, held, mark_sent, recover, waiting
from app.storage.queue import Queue
from worker.invitations import invite
from worker.processes.owners import is_known_dead

_LOG = logging.getLogger(__name__)
_ROLE = "sweeper"
# If the queue is empty, a queued job whose message is older than this has lost it.
_UNSENT_SECONDS = 3.0
# Messages sent in one round.
_AT_ONCE = 32


@dataclass
class Sweeper:
    """Sweeps in rounds; among all workers' sweepers, only the elected one does."""

    engine: Engine
    queue: Queue
    store: ArtifactStore
    settings: Settings
    owner: str

    def sweep(self) -> bool:
        """Sweep once if elected; return whether it was."""
        # All sweepers watch leases, so that any of them can take over.
        run_out = self.run_out()
        if not self._election.stand():
            return False
        self.recover(run_out)
        self.resend()
        invite(self.engine, self.queue)
        self.delete_leftovers()
        return True

    def run_out(self) -> dict[tuple[JobKind, str], Hold]:
        """Return the leases that were not renewed in time."""
        holds = held(self.engine)
        # Do not wait for the leases of this machine's dead workers.
        for owner in {hold.owner for hold in holds.values() if is_known_dead(hold.owner)}:
            abandon(self.engine, owner)
        unchanged = self._tracker.unchanged(holds)
        length = self.settings.lease_seconds
        return {job: holds[job] for job, seconds in unchanged.items() if seconds >= length}

    @cached_property
    def _tracker(self) -> ChangeTracker:
        return ChangeTracker(longest_round_seconds=self.settings.sweep_seconds * 2)

    @cached_property
    def _election(self) -> fleet.Election:
        seconds = self.settings.sweep_seconds * 2
        return fleet.Election(self.engine, _ROLE, self.owner, seconds, is_known_dead)

    def recover(self, run_out: dict[tuple[JobKind, str], Hold] | None = None) -> None:
        """Return the jobs of dead workers to the queue, or end them."""
        most = self.settings.max_crashes
        lost = WorkerLostError(f"The worker died {most} times during this job; see its log.")
        killed = OutOfMemoryError(
            f"The worker was killed {most} times during this job, probably because the host ran "
            "out of memory: give the worker more memory, or set AFLUENTE_THREADS=1."
        )
        for job in recover(self.engine, most, lost.as_record(), killed.as_record(), run_out):
            _LOG.warning("%s lost its worker: %s", job.id, job.status)

    def resend(self) -> None:
        """Send missing messages; if the queue is empty, also those that may have been lost."""
        unsent_seconds = _UNSENT_SECONDS if self.queue.depth() == 0 else None
        for kind, job_id in waiting(self.engine, unsent_seconds=unsent_seconds)[:_AT_ONCE]:
            if not self.queue.send(kind, job_id):
                return
            mark_sent(self.engine, kind, job_id)

    def delete_leftovers(self) -> None:
        """Delete rows, scratch space and folders that are no longer needed."""
        parts.delete_leftovers(self.engine)
        inventory = self.store.inventory()
        over, published = merges.disposable(
            self.engine,
            {merge_of(folder) for folder in inventory},
            failed_within_seconds=self.settings.failed_scratch_seconds,
        )
        for folder in self.store.discard(inventory, over, published):
            _LOG.info("removed %s", folder)
