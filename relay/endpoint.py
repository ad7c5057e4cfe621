"""One address that is asked: its connections, and what is written to them.

Of aiohttp's client this takes what is hard to get right: the connector, which resolves names, tries addresses side by side
and speaks TLS; and the protocol with its parser in C. It leaves out what costs most and does nothing here: sessions,
requests and responses, with their redirects, cookies, proxies, tracing and encodings. A request is a head, known at the
start up to its id and length, and a body; a reply is a `relay.reply.Reply`.

Idle connections are kept here and not in the connector, which so only ever opens new ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Final, cast

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
from relay.config import Upstream
from relay.reply import Reply

# uvicorn closes idle connections after 5 s; one that we give up first is never found closed.
POOL_IDLE_S: Final = 4.0
# How soon a pooled connection is found closed that was closed before the request came: some round trips.
STALE_S: Final = 1.0
# Of a body that nobody has begun to push yet, or that is read by awaiting.
READ_BUFFER_BYTES: Final = 32_768
# A longer body is written in pieces, as the connection takes them: TLS would stop the loop to encrypt all of it.
MAX_WRITE_BYTES: Final = 262_144


class StaleError(ServerDisconnectedError):
    """A pooled connection was closed at once, before any byte came: the upstream cannot have acted."""


class Endpoint:
    """Where one upstream is asked. Made inside a running loop."""

    __slots__ = ("_connector", "_first_byte_timeout_s", "_idle", "_loop", "_pruning", "_stream", "_target", "_timeout", "_whole")  # fmt: skip

    def __init__(self, upstream: Upstream, connector: Connector) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = connector
        self._idle: deque[tuple[Connection, float]] = deque()  # with the time since when, the longest idle first
        self._pruning: asyncio.TimerHandle | None = None
        self._first_byte_timeout_s = upstream.first_byte_timeout_s
        # Nobody waits for a connection longer than for the reply.
        connect_s = min(upstream.connect_timeout_s, upstream.first_byte_timeout_s)
        self._timeout = ClientTimeout(total=None, connect=connect_s)
        url = URL(upstream.base_url + "/chat/completions")
        self._target = ClientRequest(hdrs.METH_POST, url, loop=self._loop)  # the connector only looks at where it goes
        key = None if upstream.api_key is None else upstream.api_key.reveal()
        self._stream = _head(url, key, "text/event-stream")
        self._whole = _head(url, key, "application/json")

    async def ask(self, body: bytes, *, stream: bool, request_id: str) -> Reply:
        """POST it. Redirects are not followed, and the reply is asked for uncompressed.

        Raises ConnectionTimeoutError and ClientConnectorError where no connection is to be had, TimeoutError where the
        head does not come in time, StaleError, or else ClientError, OSError or HttpProcessingError.
        """
        loop = self._loop
        asked_at = loop.time()
        connection = self._take_idle(asked_at) or await self._connect()
        protocol = cast(ClientProtocol, connection.protocol)
        used, protocol.used = protocol.used, True
        late = loop.call_at(asked_at + self._first_byte_timeout_s, protocol.give_up)
        try:
            protocol.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=READ_BUFFER_BYTES)
            head = self._stream if stream else self._whole
            protocol.send(b"%b%b\r\nContent-Length: %d\r\n\r\n" % (head, request_id.encode(), len(body)), body)
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:  # the reply comes after it
                message, content = await protocol.read()
        except BaseException as cause:
            connection.close()
            # One that takes its time to close has read the request, and worked on it.
            if used and loop.time() - asked_at < STALE_S and _is_closed(cause):
                raise StaleError from None
            raise
        finally:
            late.cancel()
        return Reply(message.code, message.headers, content, connection, self._keep)

    def drop_idle(self) -> None:
        """Close the pooled connections: one of them was found closed, so the others may be."""
        while self._idle:
            self._idle.popleft()[0].close()

    def close(self) -> None:
        """Close what is idle; of the others each is its reply's."""
        self.drop_idle()
        if self._pruning is not None:
            self._pruning.cancel()

    # Connections

    async def _connect(self) -> Connection:
        try:
            return await self._connector.connect(self._target, [], self._timeout)
        except TimeoutError as cause:
            raise ConnectionTimeoutError("no connection in time") from cause

    def _take_idle(self, now: float) -> Connection | None:
        while self._idle:
            connection, since = self._idle.popleft()
            protocol = cast(ClientProtocol, connection.protocol)
            # What has come unasked would be taken for the answer to the next request.
            if protocol.is_connected() and not protocol.should_close and now - since <= POOL_IDLE_S:
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        """A reply has ended: the next request may go this way."""
        protocol = cast(ClientProtocol, connection.protocol)
        if protocol.should_close or protocol.unsent or self._connector.closed:
            connection.close()
            return
        self._idle.append((connection, self._loop.time()))
        if self._pruning is None:
            self._pruning = self._loop.call_later(POOL_IDLE_S, self._prune)

    def _prune(self) -> None:
        now = self._loop.time()
        while self._idle and now - self._idle[0][1] >= POOL_IDLE_S:
            self._idle.popleft()[0].close()
        self._pruning = self._loop.call_at(self._idle[0][1] + POOL_IDLE_S, self._prune) if self._idle else None


def _head(url: URL, key: str | None, accept: str) -> bytes:
    """The head of every request, up to its id and length, which stand at the end. Raises ValueError if it is no head."""
    lines = [
        f"{hdrs.METH_POST} {url.raw_path_qs} HTTP/1.1",
        f"{hdrs.HOST}: {url.host_port_subcomponent}",
        f"{hdrs.CONTENT_TYPE}: application/json",
        f"{hdrs.ACCEPT_ENCODING}: identity",
        f"{hdrs.ACCEPT}: {accept}",
        *([f"{hdrs.AUTHORIZATION}: Bearer {key}"] if key is not None else []),
        "x-request-id: ",
    ]
    if any(not line.isprintable() for line in lines):
        raise ValueError("a key or an address holds a character that cannot stand in the head of a request")
    return "\r\n".join(lines).encode()


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

    def give_up(self) -> None:
        """No head has come in time. One that came in this very turn of the loop counts."""
        self.set_exception(TimeoutError())


class Connector(TCPConnector):
    """Opens connections whose bodies can be pushed, as many as are asked for."""

    def __init__(self) -> None:
        super().__init__(limit=0)
        self._factory = cast("partial[ResponseHandler]", partial(ClientProtocol, loop=self._loop))
