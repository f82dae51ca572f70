"""Wakes this process's readers of merges' events, over one Redis connection."""

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
# Readers also poll, since messages may be lost. By whether the broker is connected.
_POLL_SECONDS = {True: 3.0, False: 1.0}


class Wakeups:
    """Wakes readers of a merge when its channel gets a message; silent without a broker."""

    def __init__(self, queue: Queue | None) -> None:
        self._queue = queue
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._connected = False

    @property
    def poll_seconds(self) -> float:
        """How long a reader should wait for a wake-up before it polls."""
        return _POLL_SECONDS[self._connected]

    @contextmanager
    def subscribe(self, merge_id: str) -> Iterator[asyncio.Event]:
        """Yield an asyncio.Event that is set for every message of the merge."""
        channel, awake = events_channel(merge_id), asyncio.Event()
        self._waiting[channel].add(awake)
        try:
            yield awake
        finally:
            self._waiting[channel].discard(awake)
            if not self._waiting[channel]:
                del self._waiting[channel]

    async def run(self) -> None:
        """Listen to all channels until cancelled; reconnect when the broker comes back."""
        while self._queue is not None:
            try:
                await self._wake_while_connected(self._queue)
            except (RedisError, OSError) as error:
                _LOG.debug("no broker to wake readers of events: %s", error)
            finally:
                self._connected = False
            await asyncio.sleep(_RETRY_SECONDS)

    async def _wake_while_connected(self, queue: Queue) -> None:
        async with queue.subscriber() as client, client.pubsub() as messages:
            await messages.psubscribe(events_channel("*"))
            async for message in messages.listen():
                if message["type"] == "psubscribe":
                    self._connected = True
                    self._wake(*self._waiting)  # messages may have been missed
                elif message["type"] == "pmessage":
                    self._wake(message["channel"].decode())

    def _wake(self, *channels: str) -> None:
        for channel in channels:
            for awake in self._waiting.get(channel, ()):
                awake.set()


async def wait(awake: asyncio.Event, seconds: float) -> None:
    """Wait for a wake-up, at most this long, and reset it."""
    try:
        await asyncio.wait_for(awake.wait(), seconds)
    except TimeoutError:
        return
    awake.clear()
