"""Wakes everyone in this process who waits for a merge's events, over one Redis connection."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from app.contract.tasks import events_channel
from app.storage.queue import Queue

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
# Publishing may fail where nobody notices: readers look by themselves too.
_LOOK_SECONDS = {True: 3.0, False: 1.0}


class Bell:
    """Rings for a merge when its channel gets a message; silent while the broker is away."""

    def __init__(self, queue: Queue | None) -> None:
        self._queue = queue
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._connected = False

    @property
    def look_seconds(self) -> float:
        """How long a reader should wait for the bell before it looks by itself."""
        return _LOOK_SECONDS[self._connected]

    @contextmanager
    def listen(self, merge_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever the bell rings for the merge."""
        channel, rung = events_channel(merge_id), asyncio.Event()
        self._waiting[channel].add(rung)
        try:
            yield rung
        finally:
            self._waiting[channel].discard(rung)
            if not self._waiting[channel]:
                del self._waiting[channel]

    async def ring_for_ever(self) -> None:
        """Listen to all channels, and reconnect whenever the broker comes back."""
        while self._queue is not None:
            try:
                await self._ring_while_connected(self._queue)
            except (RedisError, OSError) as error:
                _LOG.debug("no broker to wake readers of events: %s", error)
            finally:
                self._connected = False
            await asyncio.sleep(_RETRY_SECONDS)

    async def _ring_while_connected(self, queue: Queue) -> None:
        async with queue.subscriber() as client, client.pubsub() as messages:
            await messages.psubscribe(events_channel("*"))
            async for message in messages.listen():
                if message["type"] == "psubscribe":
                    self._connected = True
                    self._ring(*self._waiting)  # for what was missed while away
                elif message["type"] == "pmessage":
                    self._ring(message["channel"].decode())

    def _ring(self, *channels: str) -> None:
        for channel in channels:
            for rung in self._waiting.get(channel, ()):
                rung.set()


async def wait(rung: asyncio.Event, seconds: float) -> None:
    """Return when the bell rings, or after so many seconds; the bell is silent again then."""
    try:
        await asyncio.wait_for(rung.wait(), seconds)
    except TimeoutError:
        return
    rung.clear()
