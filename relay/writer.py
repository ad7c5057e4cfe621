"""The last sink: what is released goes to the client.

The head leaves with the first frame. Until then the answer may still become a clean error. Frames are written straight
to the transport, in HTTP chunks framed here; only the head, a full socket and the end need the handler's task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from time import monotonic
from typing import Final

from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDict

from relay.errors import InternalError, RelayError
from relay.exchange import Exchange, Outcome
from relay.pure.openai import Chunk, error_event
from relay.pure.surfaces import says

# What we may hold for a client that does not read. The kernel's buffers come on top.
HIGH_WATER_BYTES: Final = 65_536

STREAM_HEADERS: Final[Mapping[str, str]] = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    "X-Accel-Buffering": "no",
}
KEEP_ALIVE: Final = b": keep-alive\n\n"


class Outbox:
    """The writes of one turn of the loop, made together when everything that was there to read has been read.

    A write wakes the client's process. Made one by one, between two reads, each wakes a process that has just gone to
    sleep again, and that costs more than everything else that we do for a frame.
    """

    __slots__ = ("_due", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due: list[StreamWriter] = []
        self._loop = loop  # asking for the running one is a system call in Python 3.11

    def add(self, writer: StreamWriter) -> None:
        """`writer` has something to write."""
        if not self._due:
            self._loop.call_soon(self._write)
        self._due.append(writer)

    def _write(self) -> None:
        due, self._due = self._due, []
        for writer in due:
            writer.flush()


class ClientStalled(Exception):
    """The client has read nothing for longer than it may."""


class StreamWriter:
    """Writes a stream. `run` is awaited by the request's handler until the stream has ended."""

    __slots__ = (
        "_chunked", "_ended", "_ex", "_outbox", "_pending", "_request", "_stall_timeout_s", "_transport", "_waiter",
        "chunks", "first_at", "first_text_at", "headers", "outcome", "status",
    )  # fmt: skip

    def __init__(self, ex: Exchange, request: web.BaseRequest, outbox: Outbox, *, stall_timeout_s: float) -> None:
        self.outcome: Outcome | None = None
        self.status = 200
        self.headers: Mapping[str, str] = {}  # of an answer that a plugin gave
        self.chunks = 0
        self.first_at = 0.0  # when the first frame left; `time.monotonic`
        self.first_text_at: float | None = None  # when the first text was there to leave
        self._ex = ex
        self._request = request
        self._outbox = outbox
        self._stall_timeout_s = stall_timeout_s
        self._chunked = request.version >= HttpVersion11  # HTTP/1.0: the body ends with the connection
        self._transport: asyncio.Transport | None = None
        self._pending: list[bytes] = []  # what the next write will take
        self._waiter: asyncio.Future[None] | None = None
        self._ended = asyncio.Event()

    # The sink

    def feed(self, chunk: Chunk) -> None:
        if self.outcome is None:
            self.chunks += 1
            if self.first_text_at is None and says(chunk):
                self.first_text_at = monotonic()
            pending = self._pending
            if not pending:
                self._outbox.add(self)
            pending.append(chunk.raw)

    def end(self, outcome: Outcome) -> None:
        if self.outcome is not None:
            return
        self.outcome = outcome
        if outcome.kind != "client_gone" and (self._began or outcome.error is None):
            error = error_event(outcome.error.body) if outcome.error is not None else b""
            self._pending.append(error + outcome.done)
        self.flush()
        self._ended.set()
        self._wake()

    async def ended(self) -> None:
        """Returns when the end has come through."""
        await self._ended.wait()

    @property
    def _began(self) -> bool:
        return self._transport is not None or bool(self._pending)

    def keep_alive(self) -> None:
        """Say that we are still there, if the head has left and the end has not come."""
        if self._transport is not None and self.outcome is None:
            self._pending.append(KEEP_ALIVE)
            self.flush()

    def flush(self) -> None:
        """Write what was fed, in one HTTP chunk; before the head has left, have it sent."""
        pending, transport = self._pending, self._transport
        if not pending:
            return
        if transport is None:
            self._wake()
            return
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        pending.clear()
        if not transport.is_closing():
            transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
            if transport.get_write_buffer_size() > HIGH_WATER_BYTES:
                self._ex.pause(self)
                self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _woken(self) -> None:
        self._waiter = self._ex.loop.create_future()
        await self._waiter
        self._waiter = None

    # The handler's side

    async def run(self) -> web.StreamResponse:
        """Send what is fed until the end. Raises the outcome's error if the head has not left by then."""
        if self.outcome is None and not self._pending:
            await self._woken()
        if not self._pending:
            raise self.outcome.error or InternalError() if self.outcome else InternalError()
        response = web.StreamResponse(status=self.status, headers=_head(self._ex, STREAM_HEADERS, self.headers))
        if not self._chunked:
            response.force_close()  # also for a client that asks to keep a connection which has to end
        stream = await response.prepare(self._request)
        transport = self._request.transport
        if stream is None or transport is None:
            raise ConnectionResetError("the client is gone")
        self._transport = transport
        self.first_at = monotonic()
        self.flush()
        while self.outcome is None or transport.get_write_buffer_size() > HIGH_WATER_BYTES:
            if transport.get_write_buffer_size() > HIGH_WATER_BYTES:
                await _taken(stream.drain(), transport, self._stall_timeout_s)
            self._ex.resume(self)
            if self.outcome is None:
                await self._woken()
        await _ended(response, transport, self._stall_timeout_s)
        return response


class WholeWriter:
    """Sends a reply that is not streamed."""

    def __init__(self, ex: Exchange, request: web.BaseRequest, *, stall_timeout_s: float) -> None:
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
        self._ended = asyncio.Event()

    def feed(self, chunk: Chunk) -> None:
        if self.outcome is None:
            self.chunks += 1
            self.first_text_at = monotonic()
            self._body = chunk.raw

    def end(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self._ended.set()

    async def ended(self) -> None:
        await self._ended.wait()

    def keep_alive(self) -> None:
        """There is nothing to say before the whole reply."""

    async def run(self) -> web.StreamResponse:
        """Wait for the reply and send it. Raises the outcome's error if there is one."""
        await self._ended.wait()
        if self.outcome is not None and self.outcome.error is not None:
            raise self.outcome.error
        if self._body is None:
            raise InternalError
        headers = _head(self._ex, {hdrs.CONTENT_TYPE: "application/json"}, self.headers)
        if len(self._body) <= HIGH_WATER_BYTES:
            self.first_at = monotonic()
            return web.Response(body=self._body, status=self.status, headers=headers)
        response = web.StreamResponse(status=self.status, headers=headers)
        response.content_length = len(self._body)
        await response.prepare(self._request)
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        self.first_at = monotonic()
        for start in range(0, len(self._body), HIGH_WATER_BYTES):
            piece = self._body[start : start + HIGH_WATER_BYTES]
            await _taken(response.write(piece), transport, self._stall_timeout_s)
        await _ended(response, transport, self._stall_timeout_s)
        return response


Writer = StreamWriter | WholeWriter


def _head(ex: Exchange, *headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers of a reply, the exchange's own last; from now on nobody can set one."""
    head: CIMultiDict[str] = CIMultiDict()
    for mapping in headers:
        head.update(mapping)
    for name in ex.reply_headers:
        head.popall(name, None)
    head.extend(ex.reply_headers)
    ex.reply_headers.sent = True
    return head


async def _taken(writing: Awaitable[None], transport: asyncio.Transport, timeout_s: float) -> None:
    """Wait until the client has taken enough of what was written. Raises ClientStalled, the connection broken off."""
    try:
        async with asyncio.timeout(timeout_s):
            await writing
    except TimeoutError:
        transport.abort()
        raise ClientStalled from None


async def _ended(response: web.StreamResponse, transport: asyncio.Transport, timeout_s: float) -> None:
    """Write the end. Raises ClientStalled as `_taken` does."""
    if transport.get_write_buffer_size():
        await _taken(response.write_eof(), transport, timeout_s)
    else:
        await response.write_eof()  # a few bytes into an empty buffer: there is nothing to wait for


def error_response(error: RelayError, headers: Mapping[str, str]) -> web.Response:
    """An error as an answer of its own."""
    return web.Response(
        body=error.body,
        status=error.status,
        headers={hdrs.CONTENT_TYPE: "application/json", **headers, **error.headers},
    )
