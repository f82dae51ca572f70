"""uvicorn's HTTP protocol with a deadline for what clients send; by itself it waits for ever."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def punctual(seconds: float) -> type[H11Protocol]:
    """Return a protocol that closes a connection whose next request is not begun in time.

    The time counts from the connection, or from the answer before, to the end of the request's
    head. What is left of a body that nobody read counts too. Bodies that are read have a deadline
    in the application.
    """

    class Punctual(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._expect_nothing()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete:  # none was sent ahead
                self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._expect_nothing()
            super().connection_lost(exc)

        def _expect(self) -> None:
            self._expect_nothing()
            self._late = self.loop.call_later(seconds, self.transport.close)

        def _expect_nothing(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Punctual
