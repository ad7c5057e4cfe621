"""HTTP as the public listener speaks it: what is refused before a request means anything, in our error bodies.

aiohttp answers errors below the handler itself, as text/plain, echoing what it could not read, with a traceback in the
log. A `Connection` takes that place: the same statuses, our shape, nothing echoed.

It also bounds what aiohttp does not: the time that a head may take, and its size in all. A request without a byte is no
request: an idle connection is closed after `keepalive_timeout`, and nothing is said.

Each request has a task of its own, so that what a plugin keeps in a context variable ends with it; a connection on which
nobody asks has none. aiohttp's connection has one for itself and a second for each request.

What to know of aiohttp (3.14), beside what it documents:
* What a connection has read, also what it could not, stands in `_messages`; a message is taken with `message_consumed`,
  and reading goes on when few are left.
* A body that breaks off in the middle (a chunk of no size) is reported behind the request that waits for it.
* `close` makes a connection deaf at once, also to the rest of a body, and leaves it open; so does `pre_shutdown`.
  `force_close` closes.
* Who asks for another protocol is not read on until his request has been answered: what comes after it waits in
  `_message_tail`.
* `_task_handler` is what `connection_lost` and `shutdown` cancel.
"""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from aiohttp import HttpVersion10, HttpVersion11, hdrs, http_exceptions
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.tcp_helpers import tcp_keepalive
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo

from relay.errors import InternalError, Reject, RelayError
from relay.request import Request, not_http

if TYPE_CHECKING:
    from relay.listener import Listener

# From the first byte of a head to its last. A client that means it sends it in one packet.
HEAD_TIMEOUT_S = 20.0
# Browsers and SDKs send some twenty header lines and 1 KiB in all; gateways in front add their own.
MAX_HEADERS = 128
MAX_HEAD_BYTES = 65_536


def _wrong(message: RawRequestMessage) -> Reject | None:
    """What is wrong with a head that aiohttp takes."""
    version = message.version
    if version not in (HttpVersion11, HttpVersion10):
        return Reject("Speak HTTP/1.1 or HTTP/1.0.", code="bad_request")
    # aiohttp takes any coding as long as chunks come last, and chunks from HTTP/1.0, which has none (RFC 9112, 6.1).
    transfer = message.headers.get(hdrs.TRANSFER_ENCODING)
    if transfer is not None and (transfer.lower() != "chunked" or version != HttpVersion11):
        return Reject(
            "Send the body with its length, or by HTTP/1.1 in chunks and no other coding.", code="bad_request"
        )
    if sum(map(len, chain.from_iterable(message.raw_headers))) > MAX_HEAD_BYTES:
        return Reject(
            f"The headers are too long; send at most {MAX_HEAD_BYTES:,} bytes.", code="headers_too_large", status=431
        )
    return None


class Connection(RequestHandler):
    """A client's connection: what it sends, until it is a request, and when the next one may be answered."""

    __slots__ = ("_content", "_context", "_late", "_waits")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._late: asyncio.TimerHandle | None = None
        self._waits = False  # for its turn to begin
        self._content: StreamReader = EMPTY_PAYLOAD  # the body of the request that is being answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # aiohttp's own would start a task here.
        BaseProtocol.connection_made(self, transport)
        opened = cast(asyncio.Transport, transport)
        tcp_keepalive(opened)
        self._listener.connection_made(self, opened)
        self._context = copy_context()
        self._rest()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    @property
    def _listener(self) -> Listener:
        return cast("Listener", self._manager)

    @property
    def is_quiet(self) -> bool:
        """Whether nobody asks or is being answered."""
        return self._task_handler is None and self._late is None and not self._waits

    # What comes

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        messages = self._messages
        if self._task_handler is not None:
            if messages and isinstance(messages[-1][0], _ErrInfo) and not self._content.is_eof():
                self._content.set_exception(messages[-1][0].exc)
        elif messages:
            self._in_time()
            self._enter()
        # Empty lines between two requests are nothing.
        elif self._late is None and data.strip(b"\r\n") and not (self._close or self._force_close):
            self._late = self._loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._reading_paused:  # else there is nothing to resume, and whoever reads a body says this after each read
            super().resume_reading(resume_parser)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _head_is_late(self) -> None:
        self._late = None
        if not self._force_close:
            self._messages.append((_ErrInfo(status=408, exc=TimeoutError(), message=""), EMPTY_PAYLOAD))
            self._enter()

    # What is answered

    def _enter(self) -> None:
        """Have the oldest of what has come answered, when it is its turn."""
        if not self._waits:
            self._waits = True
            self._listener.turnstile.enter(self._begin)

    def _begin(self) -> None:
        self._waits = False
        if self._force_close or self.transport is None:  # meanwhile its client has left
            return
        message, self._content = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        self._task_handler = self._loop.create_task(self._answer(message, self._content))
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()

    async def _answer(self, message: RawRequestMessage | _ErrInfo, content: StreamReader) -> None:
        """One request from its head to the end of its answer."""
        listener, keep = self._listener, False
        wrong = _meaning(message) if isinstance(message, _ErrInfo) else _wrong(message)
        head = ERROR if isinstance(message, _ErrInfo) else message
        keep_alive = not (head.should_close or listener.leaving)
        request = Request(head, content, self, self._task_handler, keep_alive)
        try:
            if wrong is None:
                await listener.answer(request)
            else:
                listener.refuse(request, wrong)
            if not content.is_eof():
                await self._linger(content)
            keep = request.keep_alive
        except ConnectionError:
            pass  # the client is gone, or as good as gone
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception as cause:  # noqa: BLE001 - told on, and answered if nothing else was
            if not request.status:
                listener.refuse(request, InternalError(), cause)
        finally:
            self._over(keep)

    async def _linger(self, content: StreamReader) -> None:
        """Read on and throw it away, so that a client which is still sending gets to see the answer."""
        try:
            async with asyncio.timeout(self._lingering_time):
                while not content.is_eof():
                    await content.readany()
        except TimeoutError:
            raise ConnectionAbortedError("the body did not end") from None

    def _over(self, keep: bool) -> None:
        """An answer has been given: what is next?"""
        self._task_handler = None
        self._content = EMPTY_PAYLOAD
        if self._force_close or self.transport is None:
            return
        if not keep or self._close:
            self._close = True
            self.transport.close()
            return
        if self._upgraded and not self._messages:
            self._go_on()
        if self._messages:
            self._context.copy().run(self._enter)  # not in that of the last request
        else:
            self._rest()

    def _go_on(self) -> None:
        """Nobody here speaks another protocol: what came behind the request for one is the next request."""
        assert self._parser is not None
        self._upgraded = False
        self._parser.set_upgraded(False)
        tail, self._message_tail = self._message_tail, b""
        super().data_received(tail)
        if self._buffer_paused:
            self._resume_reading_if_drained()

    # Nobody asks

    def _rest(self) -> None:
        """Wait for the next request, `keepalive_timeout` at most: one timer goes on from rest to rest."""
        self._next_keepalive_close_time = due = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(due, self._process_keepalive)

    def _process_keepalive(self) -> None:
        self._keepalive_handle = None
        if self._force_close or self._task_handler is not None or self._waits:
            return
        due = self._next_keepalive_close_time
        if self._loop.time() < due:
            self._keepalive_handle = self._loop.call_at(due, self._process_keepalive)
        else:
            self.force_close()


def _meaning(wrong: _ErrInfo) -> RelayError:
    """The error for what aiohttp could not hand to a handler."""
    exc = wrong.exc
    if isinstance(exc, http_exceptions.LineTooLong):
        return Reject("A header line is too long; send at most 8,190 bytes.", code="headers_too_large", status=431)
    if isinstance(exc, http_exceptions.BadHttpMessage) and exc.message == "Too many headers received":
        return Reject(f"Too many header lines; send at most {MAX_HEADERS}.", code="headers_too_large", status=431)
    if wrong.status == 408:
        return Reject(
            f"The head of the request did not come within {HEAD_TIMEOUT_S:g} seconds.",
            code="request_timeout",
            status=wrong.status,
        )
    return not_http() if 400 <= wrong.status < 500 else InternalError()
