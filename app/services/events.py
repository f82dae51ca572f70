"""A merge's events: in pages, or as a live stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio.to_thread

from app.services.backend import Backend
from app.services.merges import find
from app.services.presentation import event_resource
from app.services.resources import EventPage, EventResource
from app.services.wakeups import Wakeups, wait
from app.storage import events, merges

KEEP_ALIVE_SECONDS = 15.0
_BATCH = 500


def list_page(
    backend: Backend, merge_id: str, *, after: int = 0, page_size: int = 100
) -> EventPage:
    """Return a page of events with an id above `after`, oldest first; NotFoundError if unknown."""
    find(backend, merge_id)
    rows = events.read(backend.engine, merge_id, after=after, limit=page_size + 1)
    shown = [event_resource(row) for row in rows[:page_size]]
    token = str(shown[-1].id) if len(rows) > page_size else None
    return EventPage(data=shown, next_page_token=token)


def is_over(backend: Backend, merge_id: str, after: int) -> bool:
    """Return whether event `after` is an `end` and the last event; NotFoundError if unknown."""
    find(backend, merge_id)
    if after < 1:
        return False
    rows = events.read(backend.engine, merge_id, after=after - 1, limit=2)
    return len(rows) == 1 and rows[0]["type"] == "end"


async def follow(
    backend: Backend, wakeups: Wakeups, merge_id: str, after: int = 0
) -> AsyncIterator[EventResource | None]:
    """Yield the events above `after` as they happen, and None after 15 seconds without any.

    Ends after an `end` event that is the last in the log, or when the merge is deleted. Waiting
    holds neither a thread nor a database connection.
    """
    loop = asyncio.get_running_loop()
    spoke_at = loop.time()
    with wakeups.subscribe(merge_id) as awake:
        while True:
            found = await anyio.to_thread.run_sync(_poll, backend, merge_id, after)
            if found is None:
                return
            for event in found:
                yield event
                after, spoke_at = event.id, loop.time()
            if len(found) == _BATCH:
                continue
            if found and found[-1].type == "end":
                return
            if loop.time() - spoke_at >= KEEP_ALIVE_SECONDS:
                yield None
                spoke_at = loop.time()
            await wait(awake, min(wakeups.poll_seconds, KEEP_ALIVE_SECONDS))


def _poll(backend: Backend, merge_id: str, after: int) -> list[EventResource] | None:
    """Return the new events; None if the merge was deleted."""
    rows = events.read(backend.engine, merge_id, after=after, limit=_BATCH)
    if not rows and merges.get(backend.engine, merge_id) is None:
        return None
    return [event_resource(row) for row in rows]
