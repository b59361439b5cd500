"""How the server of `hf-captioner serve` is connected to its clients: by uvicorn, within limits."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from .server import CaptionServer, application

CONNECTIONS = 512  # beside those that wait for captions; each needs a file handle
GRACE = 60  # seconds that requests have to finish when the server is stopped
HEAD = 10.0  # seconds that the head of a request may take


class TimedConnection(AutoHTTPProtocol):
    """
    A connection that is closed if its client takes too long to send the head of a request. uvicorn waits for ever, and
    as many connections as the server may have would keep all other clients away.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_head()

    def _expect_head(self) -> None:
        self.loop.call_later(HEAD, self._close_unless_it_came, self.cycle)

    def _close_unless_it_came(self, last: Any) -> None:
        if self.cycle is last:  # uvicorn has another one for every request
            self.transport.close()


def configured(server: CaptionServer, **options: Any) -> uvicorn.Config:
    """How uvicorn runs this server; further options stand in place of these."""
    usual = dict(
        http=TimedConnection,
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        limit_concurrency=CONNECTIONS + server.limits.waiting,
    )
    return uvicorn.Config(application(server), **(usual | options))
