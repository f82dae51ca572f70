"""Re-sends what was lost, ends what was abandoned, removes what nobody needs any more."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Engine

from app.contract.errors import OutOfMemoryError, WorkerLostError
from app.contract.settings import Settings
from app.storage import fleet, merges, parts
from app.storage.artifacts import ArtifactStore, merge_of
from app.storage.leases import Hold, JobKind, abandon, held, mark_sent, recover, waiting
from app.storage.observer import Observer
from app.storage.queue import Queue
from worker.invitations import invite
from worker.processes.owners import is_known_dead

_LOG = logging.getLogger(__name__)
_ROLE = "sweeper"
# A queued job whose message went out longer ago than this, while the queue is empty, has lost it.
_UNSENT_SECONDS = 3.0
# A queue this deep feeds the workers; what else is queued can wait for its own message.
_AT_ONCE = 32


@dataclass
class Sweeper:
    """One round of sweeping at a time; of all workers' sweepers only the elected one sweeps."""

    engine: Engine
    queue: Queue
    store: ArtifactStore
    settings: Settings
    owner: str

    def sweep(self) -> bool:
        """Sweep once if elected; return whether it was."""
        # Those that are not elected watch too, so as to know when the elected one is gone.
        run_out = self.run_out()
        if not self._election.stand():
            return False
        self.recover(run_out)
        self.resend()
        invite(self.engine, self.queue)
        self.tidy()
        return True

    def run_out(self) -> dict[tuple[JobKind, str], Hold]:
        """Return the leases that nobody has renewed for their length."""
        holds = held(self.engine)
        # A worker of this machine that is gone cannot come back: no need to wait for its lease.
        for owner in {hold.owner for hold in holds.values() if is_known_dead(hold.owner)}:
            abandon(self.engine, owner)
        unchanged = self._observer.unchanged(holds)
        length = self.settings.lease_seconds
        return {job: holds[job] for job, seconds in unchanged.items() if seconds >= length}

    @cached_property
    def _observer(self) -> Observer:
        return Observer(longest_round_seconds=self.settings.sweep_seconds * 2)

    @cached_property
    def _election(self) -> fleet.Election:
        seconds = self.settings.sweep_seconds * 2
        return fleet.Election(self.engine, _ROLE, self.owner, seconds, is_known_dead)

    def recover(self, run_out: dict[tuple[JobKind, str], Hold] | None = None) -> None:
        """Put the jobs of dead workers back into the queue, or end them."""
        most = self.settings.max_crashes
        lost = WorkerLostError(f"The worker died {most} times while it did this; see its log.")
        killed = OutOfMemoryError(
            f"The worker was killed {most} times while it did this, most likely because the host's "
            "memory ran out: give the worker more, or set AFLUENTE_THREADS=1."
        )
        for job in recover(self.engine, most, lost.as_record(), killed.as_record(), run_out):
            _LOG.warning("%s lost its worker: %s", job.id, job.status)

    def resend(self) -> None:
        """Send the messages that were never sent; all, if the queue has none left."""
        unsent_seconds = _UNSENT_SECONDS if self.queue.depth() == 0 else None
        for kind, job_id in waiting(self.engine, unsent_seconds=unsent_seconds)[:_AT_ONCE]:
            if not self.queue.send(kind, job_id):
                return
            mark_sent(self.engine, kind, job_id)

    def tidy(self) -> None:
        """Remove rows, scratch space and folders that belong to nothing."""
        parts.tidy(self.engine)
        inventory = self.store.inventory()
        over, published = merges.disposable(
            self.engine,
            {merge_of(folder) for folder in inventory},
            failed_within_seconds=self.settings.failed_scratch_seconds,
        )
        for folder in self.store.discard(inventory, over, published):
            _LOG.info("removed %s", folder)
