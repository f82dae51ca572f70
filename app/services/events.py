"""The events of a merge or a study, its `topic`: in pages, or as a live stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio.to_thread

from app.contract.errors import NotFoundError
from app.contract.identifiers import STUDY
from app.services import merges, studies
from app.services.backend import Backend
from app.services.presentation import event_resource
from app.services.resources import EventPage, EventResource
from app.services.wakeups import Wakeups, wait
from app.storage import events

KEEP_ALIVE_SECONDS = 15.0
_BATCH = 500


def list_page(backend: Backend, topic: str, *, after: int = 0, page_size: int = 100) -> EventPage:
    """Return a page of events with an id above `after`, oldest first; NotFoundError if unknown."""
    _find(backend, topic)
    rows = events.read(backend.engine, topic, after=after, limit=page_size + 1)
    shown = [event_resource(row) for row in rows[:page_size]]
    token = str(shown[-1].id) if len(rows) > page_size else None
    return EventPage(data=shown, next_page_token=token)


def is_over(backend: Backend, topic: str, after: int) -> bool:
    """Return whether event `after` is an `end` and the last event; NotFoundError if unknown."""
    _find(backend, topic)
    if after < 1:
        return False
    rows = events.read(backend.engine, topic, after=after - 1, limit=2)
    return len(rows) == 1 and rows[0]["type"] == "end"


async def follow(
    backend: Backend, wakeups: Wakeups, topic: str, after: int = 0
) -> AsyncIterator[EventResource | None]:
    """Yield the events above `after` as they happen, and None after 15 seconds without any.

    Ends after an `end` event that is the last in the log, or when its topic is deleted. Waiting
    holds neither a thread nor a database connection.
    """
    loop = asyncio.get_running_loop()
    spoke_at = loop.time()
    with wakeups.subscribe(topic) as awake:
        while True:
            found = await anyio.to_thread.run_sync(_poll, backend, topic, after)
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


def _poll(backend: Backend, topic: str, after: int) -> list[EventResource] | None:
    """Return the new events; None if the topic was deleted."""
    rows = events.read(backend.engine, topic, after=after, limit=_BATCH)
    if not rows:
        try:
            _find(backend, topic)
        except NotFoundError:
            return None
    return [event_resource(row) for row in rows]


def _find(backend: Backend, topic: str) -> None:
    """Raise NotFoundError if the merge or the study is unknown."""
    (studies if topic.startswith(STUDY) else merges).find(backend, topic)
