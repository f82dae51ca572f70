"""Invites idle workers to decode free parts of evaluations and studies."""

from __future__ import annotations

from sqlalchemy import Engine

from app.storage import fleet, parts, studies
from app.storage.leases import JobKind, owners
from app.storage.queue import Queue

_SEEN_WITHIN_SECONDS = 15.0


def invite(engine: Engine, queue: Queue) -> None:
    """Send a message for each claimable part, at most one for each idle worker.

    Messages are not recorded: the next sweep invites again, and late messages are harmless.
    """
    if queue.depth() != 0:
        return  # other jobs come first
    busy = {owner.split(":")[0] for owner in owners(engine)}
    idle = [row for row in fleet.alive(engine, _SEEN_WITHIN_SECONDS) if row["id"] not in busy]
    if not idle:
        return
    free = [(JobKind.EVALUATION, one) for one in parts.claimable(engine)]
    free += [(JobKind.STUDY, one) for one in studies.claimable(engine)]
    for kind, job_id in free[: len(idle)]:
        queue.send(kind, job_id)
