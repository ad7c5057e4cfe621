"""The last sink: what is released goes to the client.

The head leaves with the first frame. Until then the answer may still become a clean error. Frames are written straight
to the transport, in HTTP chunks framed here; only the head, a full socket and the end need the handler's task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Final

from aiohttp import HttpVersion11, hdrs
from multidict import CIMultiDict

from relay.errors import InternalError
from relay.exchange import Exchange, Outcome
from relay.head import BODILESS, JSON, Standard, head
from relay.pure.framing import framed
from relay.pure.openai import Chunk, error_event
from relay.pure.surfaces import says
from relay.request import Request

# What we may hold for a client that does not read. The kernel's buffers come on top.
HIGH_WATER_BYTES: Final = 49_152  # with what comes before reading stops, and what waits for a verdict, below 64 KiB

STREAM: Final = Standard(
    {
        hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
        hdrs.CACHE_CONTROL: "no-cache",
        "X-Accel-Buffering": "no",
    }
)
KEEP_ALIVE: Final = b": keep-alive\n\n"
LAST_CHUNK: Final = b"0\r\n\r\n"


class Outbox:
    """The writes of one turn of the loop, made together when everything that was there to read has been read.

    A write wakes the client's process. Made one by one, between two reads, each wakes a process that has just gone to
    sleep again, and that costs more than everything else that we do for a frame.
    """

    __slots__ = ("_loop", "due")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.due: list[StreamWriter] = []  # who has something to write; the first one calls `open`
        self._loop = loop  # asking for the running one is a system call in Python 3.11

    def open(self) -> None:
        """Write at the end of this turn."""
        self._loop.call_soon(self.write)

    def write(self) -> None:
        """Write what there is."""
        due, self.due = self.due, []
        for writer in due:
            writer.flush()


class ClientStalled(ConnectionError):
    """The client has read nothing for longer than it may."""


class StreamWriter:
    """Writes a stream. `run` is awaited by the request's handler until the stream has ended."""

    __slots__ = (
        "_chunked", "_ex", "_flows", "_outbox", "_pending", "_protocol", "_request", "_stall_timeout_s", "_transport", "_waiter",
        "chunks", "first_at", "first_text_at", "headers", "outcome", "status",
    )  # fmt: skip

    def __init__(self, ex: Exchange, request: Request, outbox: Outbox, stall_timeout_s: float) -> None:
        self.outcome: Outcome | None = None
        self.status = 200
        self.headers: Mapping[str, str] = {}  # of an answer that a plugin gave
        self.chunks = 0
        self.first_at = 0.0  # when the first frame left; `time.monotonic`
        self.first_text_at: float | None = None  # when the first text was there to leave
        self._ex = ex
        self._request = request
        self._protocol = request.protocol
        self._outbox = outbox
        self._stall_timeout_s = stall_timeout_s
        self._chunked = request.version >= HttpVersion11  # HTTP/1.0: the body ends with the connection
        self._flows = False  # frames leave as HTTP chunks, and need not be looked at any more
        self._transport: asyncio.Transport | None = None
        self._pending: list[bytes] = []  # what the next write will take
        self._waiter: asyncio.Future[None] | None = None

    # The sink

    def feed(self, chunk: Chunk) -> None:
        if self._flows:
            data = chunk.framed
        elif self.outcome is None:
            data = self._looked_at(chunk)
        else:
            return
        self.chunks += 1
        pending = self._pending
        if not pending:
            outbox = self._outbox
            if not outbox.due:
                outbox.open()
            outbox.due.append(self)
        pending.append(data)

    def _looked_at(self, chunk: Chunk) -> bytes:
        """What leaves of a frame that may be the first with text."""
        if self.first_text_at is None and says(chunk):
            self.first_text_at = monotonic()
            self._flows = self._chunked
        return chunk.framed if self._chunked else chunk.raw

    def end(self, outcome: Outcome) -> None:
        if self.outcome is not None:
            return
        self.outcome = outcome
        self._flows = False
        if outcome.kind != "client_gone" and (self._began or outcome.error is None):
            error = error_event(outcome.error.body) if outcome.error is not None else b""
            self._say(error + outcome.done)
            if self._chunked:
                self._pending.append(LAST_CHUNK)
        self.flush()
        self._wake()

    async def ended(self) -> None:
        """Returns when the end has come through. Not while `run` waits for something."""
        while self.outcome is None:
            await self._woken()

    @property
    def _began(self) -> bool:
        return self._transport is not None or bool(self._pending)

    def keep_alive(self) -> None:
        """Say that we are still there, if the head has left and the end has not come."""
        if self._transport is not None and self.outcome is None:
            self._say(KEEP_ALIVE)
            self.flush()

    def flush(self) -> None:
        """Write what was fed; before the head has left, have it sent."""
        pending, transport = self._pending, self._transport
        if not pending:
            return
        if transport is None:
            self._wake()
            return
        data = b"".join(pending)  # of one it is that one
        pending.clear()
        if not transport.is_closing():
            transport.write(data)
            if self._protocol._paused:  # more waits than HIGH_WATER_BYTES
                self._ex.pause(self)
                self._wake()

    def _say(self, data: bytes) -> None:
        """Have something of our own written after what waits."""
        self._pending.append(framed(data) if self._chunked else data)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _woken(self) -> None:
        self._waiter = self._ex.loop.create_future()
        await self._waiter
        self._waiter = None

    # The handler's side

    async def run(self) -> None:
        """Send what is fed until the end. Raises the outcome's error if the head has not left by then."""
        if self.outcome is None and not self._pending:
            await self._woken()
        if not self._pending:
            raise self.outcome.error or InternalError() if self.outcome else InternalError()
        request = self._request
        transport = _open(request)
        begin = _head(request, self._ex, self.status, STREAM, self.headers, None)
        self._transport = transport
        self.first_at = monotonic()
        self._pending.insert(0, begin)
        self.flush()
        while self.outcome is None or request.protocol.writing_paused:
            if request.protocol.writing_paused:
                await _taken(request, transport, self._stall_timeout_s)
            self._ex.resume(self)
            if self.outcome is None:
                await self._woken()
        if transport.get_write_buffer_size():
            await _taken(request, transport, self._stall_timeout_s)


class WholeWriter:
    """Sends a reply that is not streamed, or has no body."""

    __slots__ = (
        "_body", "_ex", "_request", "_stall_timeout_s", "_waiter",
        "chunks", "first_at", "first_text_at", "headers", "outcome", "status",
    )  # fmt: skip

    def __init__(self, ex: Exchange, request: Request, stall_timeout_s: float) -> None:
        self.outcome: Outcome | None = None
        self.headers: Mapping[str, str] = {}
        self.status = 200
        self.chunks = 0
        self.first_at = 0.0
        self.first_text_at: float | None = None
        self._ex = ex
        self._request = request
        self._stall_timeout_s = stall_timeout_s
        self._body: bytes | None = None
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, chunk: Chunk) -> None:
        if self.outcome is None:
            self.chunks += 1
            self.first_text_at = monotonic()
            self._body = chunk.raw

    def end(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    async def ended(self) -> None:
        """Returns when the end has come through. Not while `run` waits for it."""
        if self.outcome is None:
            self._waiter = self._ex.loop.create_future()
            await self._waiter

    def keep_alive(self) -> None:
        """There is nothing to say before the whole reply."""

    async def run(self) -> None:
        """Wait for the reply and send it. Raises the outcome's error if there is one."""
        if self.outcome is None:
            await self.ended()
        if self.outcome is not None and self.outcome.error is not None:
            raise self.outcome.error
        body = b"" if self.status in BODILESS else self._body
        if body is None:
            raise InternalError
        self.first_at = monotonic()
        await send(
            self._request, self._ex, self.status, JSON, self.headers, body, stall_timeout_s=self._stall_timeout_s
        )


Writer = StreamWriter | WholeWriter


async def send(
    request: Request,
    ex: Exchange,
    status: int,
    standard: Standard,
    headers: Mapping[str, str],
    body: bytes,
    *,
    stall_timeout_s: float,
) -> None:
    """Send a reply that is there as a whole; `headers` are those beside the exchange's own."""
    transport = _open(request)
    begin = _head(request, ex, status, standard, headers, len(body))
    if request.message.method == hdrs.METH_HEAD:
        body = b""
    transport.write(begin + body[:HIGH_WATER_BYTES])
    for start in range(HIGH_WATER_BYTES, len(body), HIGH_WATER_BYTES):
        await _taken(request, transport, stall_timeout_s)
        transport.write(body[start : start + HIGH_WATER_BYTES])
    if transport.get_write_buffer_size():
        await _taken(request, transport, stall_timeout_s)


def _head(
    request: Request, ex: Exchange, status: int, standard: Standard, others: Mapping[str, str], length: int | None
) -> bytes:
    """The head of a reply, the exchange's own headers before all others; from now on nobody can set one."""
    headers: CIMultiDict[str] = ex.reply_headers
    if others:
        headers = CIMultiDict(others)
        headers.update(ex.reply_headers)
    begin = head(request, status, standard, headers, length)
    ex.reply_headers.sent = True
    return begin


def _open(request: Request) -> asyncio.Transport:
    """The connection of a request's client. Raises ConnectionResetError if it is gone."""
    transport = request.protocol.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client is gone")
    return transport


async def _taken(request: Request, transport: asyncio.Transport, timeout_s: float) -> None:
    """Wait until the client has taken enough of what was written. Raises ClientStalled, the connection broken off.

    Raises ConnectionResetError if it is gone.
    """
    protocol = request.protocol
    if protocol.transport is None:
        raise ConnectionResetError("the client is gone")
    if not protocol.writing_paused:
        return
    try:
        async with asyncio.timeout(timeout_s):
            await protocol._drain_helper()
    except TimeoutError:
        transport.abort()
        raise ClientStalled from None
