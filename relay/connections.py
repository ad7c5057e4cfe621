"""The connections to one address, and what is written to them: one POST at a time on each, and its reply.

Of aiohttp's client this takes what is hard to get right: the connector, which resolves names, tries addresses side by side
and speaks TLS; and the parser in C (`relay.protocol`). It leaves out what costs most and does nothing here: sessions,
requests and responses, with their redirects, cookies, proxies, tracing and encodings. A request is a head, made by whoever
asks, and a body; a reply is a `relay.reply.Reply`.

Idle connections are kept here and not in the connector, which so only ever opens new ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Final, cast
from weakref import WeakSet

from aiohttp import (
    ClientConnectionResetError,
    ClientOSError,
    ClientRequest,
    ClientTimeout,
    ConnectionTimeoutError,
    ServerDisconnectedError,
    TCPConnector,
    hdrs,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage
from yarl import URL

from relay.body import PushProtocol
from relay.reply import Reply

# How soon a pooled connection is found closed that was closed before the request came: some round trips.
STALE_S: Final = 1.0
# A longer body is written in pieces, as the connection takes them: TLS would stop the loop to encrypt all of it.
MAX_WRITE_BYTES: Final = 262_144


class StaleError(ServerDisconnectedError):
    """A pooled connection was closed at once, before any byte came: the upstream cannot have acted."""


class Connections:
    """Those to where `url` is. Made inside a running loop.

    connect_timeout_s, first_byte_timeout_s: for a connection, and for the head of a reply; None: as long as it takes.
    idle_s: how long one is kept that nobody uses.
    """

    __slots__ = (
        *("_connector", "_first_byte_timeout_s", "_idle", "_idle_s", "_loop", "_pruning", "_target", "_timeout"),
        *("_all", "_waiting", "_watching"),
    )

    def __init__(
        self,
        url: URL,
        connector: Connector,
        *,
        connect_timeout_s: float | None = None,
        first_byte_timeout_s: float | None = None,
        idle_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = connector
        self._all: WeakSet[Connection] = WeakSet()
        # With the time since when, the longest idle first.
        self._idle: deque[tuple[Connection, ClientProtocol, float]] = deque()
        self._idle_s = idle_s
        self._pruning: asyncio.TimerHandle | None = None
        self._first_byte_timeout_s = first_byte_timeout_s
        self._waiting: dict[ClientProtocol, float] = {}  # for a head, each until then
        self._watching: asyncio.TimerHandle | None = None
        self._timeout = ClientTimeout(total=None, connect=connect_timeout_s)
        self._target = ClientRequest(hdrs.METH_POST, url, loop=self._loop)  # the connector only looks at where it goes

    async def post(self, head: bytes, body: bytes) -> Reply:
        """Send `head`, which lacks its Content-Length and all after it, and `body`. Redirects are not followed.

        Raises ConnectionTimeoutError and ClientConnectorError where no connection is to be had, TimeoutError where the
        head does not come in time, StaleError, or else ClientError, OSError or HttpProcessingError.
        """
        asked_at = self._loop.time()
        connection, protocol = self._take_idle(asked_at) or await self._connect()
        used, protocol.used = protocol.used, True
        limit_s = self._first_byte_timeout_s
        if limit_s is not None:
            self._waiting[protocol] = asked_at + limit_s
            if self._watching is None:
                self._watching = self._loop.call_at(asked_at + limit_s, self._watch)
        try:
            answer = protocol.expect()
            protocol.send(b"%b\r\nContent-Length: %d\r\n\r\n" % (head, len(body)), body)
            message, content = await answer
        except BaseException as cause:
            connection.close()
            # One that takes its time to close has read the request, and worked on it.
            if used and self._loop.time() - asked_at < STALE_S and _is_closed(cause):
                raise StaleError from None
            raise
        finally:
            self._waiting.pop(protocol, None)
        return Reply(message.code, message.headers, content, connection, self._keep)

    def drop_idle(self) -> None:
        """Close the pooled connections: one of them was found closed, so the others may be."""
        while self._idle:
            self._idle.popleft()[0].close()

    def close(self) -> None:
        """Close all: a reply may still be waited for when nobody wants it any more."""
        for connection in tuple(self._all):
            connection.close()
        self._idle.clear()
        for timer in (self._pruning, self._watching):
            if timer is not None:
                timer.cancel()

    async def _connect(self) -> tuple[Connection, ClientProtocol]:
        try:
            connection = await self._connector.connect(self._target, [], self._timeout)
        except TimeoutError as cause:
            raise ConnectionTimeoutError("no connection in time") from cause
        self._all.add(connection)
        return connection, cast(ClientProtocol, connection.protocol)

    def _take_idle(self, now: float) -> tuple[Connection, ClientProtocol] | None:
        while self._idle:
            connection, protocol, since = self._idle.popleft()
            # What has come unasked would be taken for the answer to the next request.
            ready = not protocol.should_close and now - since <= self._idle_s and protocol.is_connected()
            if ready and protocol.is_between:
                return connection, protocol
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        """A reply has ended: the next request may go this way."""
        protocol = cast(ClientProtocol, connection.protocol)
        if protocol.should_close or protocol.unsent:
            connection.close()
            return
        protocol.rest()
        self._idle.append((connection, protocol, self._loop.time()))
        if self._pruning is None:
            self._pruning = self._loop.call_later(self._idle_s, self._prune)

    def _prune(self) -> None:
        now = self._loop.time()
        while self._idle and now - self._idle[0][2] >= self._idle_s:
            self._idle.popleft()[0].close()
        self._pruning = self._loop.call_at(self._idle[0][2] + self._idle_s, self._prune) if self._idle else None

    def _watch(self) -> None:
        """Give up the heads that are late. One timer looks after all: as good as none of them ever is."""
        now = self._loop.time()
        for protocol, until in self._waiting.items():
            if until <= now:
                protocol.give_up()
        left = [until for until in self._waiting.values() if until > now]
        self._watching = self._loop.call_at(min(left), self._watch) if left else None


def _is_closed(cause: BaseException) -> bool:
    """Whether a connection ended, in good order or by a reset, before any byte of an answer came."""
    if isinstance(cause, ServerDisconnectedError):
        return not isinstance(cause.message, RawResponseMessage)  # then it has the head as far as it came
    return isinstance(cause, ClientOSError | ConnectionError)


class ClientProtocol(PushProtocol):
    """A connection to an upstream. unsent: what is still to be written of a long request."""

    used = False  # it has served a request
    unsent: memoryview | None = None

    def send(self, head: bytes, body: bytes) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ClientConnectionResetError("the connection is closed")
        if len(body) <= MAX_WRITE_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            self.unsent = memoryview(body)
            self._send_on()

    def _send_on(self) -> None:
        while self.unsent and not self.writing_paused and self.transport is not None:
            piece, self.unsent = self.unsent[:MAX_WRITE_BYTES], self.unsent[MAX_WRITE_BYTES:]
            self.transport.write(piece)
        if not self.unsent:
            self.unsent = None

    def resume_writing(self) -> None:
        super().resume_writing()
        self._send_on()


class Connector(TCPConnector):
    """Opens connections whose bodies can be pushed, as many as are asked for."""

    def __init__(self) -> None:
        super().__init__(limit=0)
        self._factory = cast("partial[ResponseHandler]", partial(ClientProtocol, loop=self._loop))
