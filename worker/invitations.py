"""Calls workers that have nothing to do to an evaluation that has parts to spare."""

from __future__ import annotations

from sqlalchemy import Engine

from app.storage import fleet, parts
from app.storage.leases import JobKind, owners
from app.storage.queue import Queue

_SEEN_WITHIN_SECONDS = 15.0


def invite(engine: Engine, queue: Queue) -> None:
    """Send a message for each part that is free, to as many workers as are idle; none are noted.

    A message that is lost or comes too late costs nothing: the next sweep invites again.
    """
    if queue.depth() != 0:
        return  # there is other work, and it goes first
    busy = {owner.split(":")[0] for owner in owners(engine)}
    idle = [row for row in fleet.alive(engine, _SEEN_WITHIN_SECONDS) if row["id"] not in busy]
    if not idle:
        return
    for evaluation_id in parts.spare(engine)[: len(idle)]:
        queue.send(JobKind.EVALUATION, evaluation_id)
