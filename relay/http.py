"""HTTP as the public listener speaks it: what is refused before a request means anything, in our error bodies.

aiohttp answers errors below the handler itself, as text/plain, echoing what it could not read, with a traceback in the
log. `Listener` takes that place: the same statuses, our shape, nothing echoed.

It also bounds what aiohttp does not: the time that a head may take, and its size in all. A request without a byte is no
request: an idle connection is closed after `keepalive_timeout`, and nothing is said.

Each request has a task of its own, so that what a plugin keeps in a context variable ends with it; a connection on which
nobody asks has none. aiohttp's connection has one for itself and a second for each request.

What to know of aiohttp (3.14), beside what it documents:
* What a connection has read, also what it could not, stands in `_messages`; a message is taken with `message_consumed`,
  and reading goes on when few are left.
* A body that breaks off in the middle (a chunk of no size) is reported behind the request that waits for it.
* A body whose end has come with the rest is in its reader's `_buffer`, and nobody is held up by it.
* `close` makes a connection deaf at once, also to the rest of a body, and leaves it open; so does `pre_shutdown`.
  `force_close` closes.
* Who asks for another protocol is not read on until his request has been answered: what comes after it waits in
  `_message_tail`.
* `_task_handler` is what `connection_lost` and `shutdown` cancel.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import copy_context
from itertools import chain
from typing import Any, cast

from aiohttp import HttpVersion10, HttpVersion11, hdrs, http_exceptions, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.tcp_helpers import tcp_keepalive
from aiohttp.web_protocol import ERROR, RequestHandler, RequestPayloadError, _ErrInfo
from multidict import CIMultiDict

from relay.errors import InternalError, Reject, RelayError
from relay.head import JSON, head
from relay.request import Request
from relay.turnstile import Turnstile
from relay.writer import HIGH_WATER_BYTES

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
# The error that was answered, its request id, and what was raised if that was not a client's fault.
OnRefusal = Callable[[RelayError, str, BaseException | None], None]

# From the first byte of a head to its last. A client that means it sends it in one packet.
HEAD_TIMEOUT_S = 20.0
# How long what is left of a refused body is read, and thrown away.
LINGER_S = 5.0
# How often the connections of a listener that empties are looked at.
LOOK_S = 0.05
# Browsers and SDKs send some twenty header lines and 1 KiB in all; gateways in front add their own.
MAX_HEADERS = 128
MAX_HEAD_BYTES = 65_536

_CLOSE: Mapping[str, str] = {hdrs.CONNECTION: "close"}


class Listener(web.Server):
    """aiohttp's low-level server, with error answers of ours. Handlers are cancelled when their client leaves.

    on_refusal: told of every answer that no handler gave. count: of open connections; on_count is told of each change.
    turnstile: where requests wait for their turn to begin.
    leaving: every answer is the last one on its connection.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        on_refusal: OnRefusal | None = None,
        turnstile: Turnstile | None = None,
        **options: Any,
    ) -> None:
        self._on_refusal = on_refusal
        self.leaving = False
        self.count = 0
        self.on_count: Callable[[int], None] | None = None
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_headers=MAX_HEADERS,
            lingering_time=LINGER_S,
            **options,
        )
        self.turnstile = turnstile or Turnstile(self._loop)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        transport.set_write_buffer_limits(HIGH_WATER_BYTES)  # from here on a writer that waits, waits
        self._counted(1)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._counted(-1)

    def _counted(self, change: int) -> None:
        self.count += change
        if self.on_count is not None:
            self.on_count(self.count)

    def leave(self) -> None:
        """Have every further request answered with `Connection: close`, so that its client comes by another one."""
        self.leaving = True

    async def empty(self, quiet_s: float) -> None:
        """Returns when the last connection is closed; those on which nobody has asked for `quiet_s` are. After `leave`."""
        loop = asyncio.get_running_loop()
        quiet: dict[_Connection, float] = {}
        while self._connections:
            now = loop.time()
            waiting = (each for each in map(_ours, self._connections) if each.is_quiet)
            quiet = {each: quiet.get(each, now) for each in waiting}
            for each, since in quiet.items():
                if now - since >= quiet_s:
                    each.force_close()
            await asyncio.sleep(LOOK_S)  # aiohttp tells nobody when it begins to wait

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    async def answer(self, request: Request) -> None:
        """Have a request answered: by the response that the handler makes of aiohttp's own request."""
        protocol, task = request.protocol, cast("asyncio.Task[None]", request.task)
        message = request.message._replace(should_close=not request.keep_alive)
        writer = StreamWriter(protocol, self._loop)
        asked = web.BaseRequest(message, request.content, protocol, writer, task, self._loop)
        try:
            response = await self.request_handler(asked)
            if response.headers.get(hdrs.CONNECTION) == "close":
                response.force_close()  # aiohttp sends such a header, and does not keep to it
            await response.prepare(asked)
            request.status = response.status
            await response.write_eof()
            request.keep_alive = bool(response.keep_alive)
        except Exception:
            if writer.output_size:
                raise ConnectionResetError("the answer has begun; another one cannot be sent") from None
            raise

    def refuse(self, request: Request, error: RelayError, cause: BaseException | None = None) -> None:
        """Answer what is no request, by which no exchange has begun. The connection is closed after it."""
        request_id = new_id()
        headers = CIMultiDict({"x-request-id": request_id, **error.headers})
        request.keep_alive = False
        body = error.body
        data = head(request, error.status, JSON, headers, len(body))
        if request.protocol.transport is not None:
            request.protocol.transport.write(data if request.message.method == hdrs.METH_HEAD else data + body)
        if self._on_refusal is not None:
            self._on_refusal(error, request_id, cause)


class PublicListener(Listener):
    """One whose handler takes a request as it is, and writes the answer itself."""

    def __init__(self, handler: Callable[[Request], Coroutine[Any, Any, None]], **options: Any) -> None:
        super().__init__(cast(Handler, handler), **options)
        self.answer = handler  # type: ignore[method-assign, assignment]


def _ours(connection: RequestHandler) -> _Connection:
    assert isinstance(connection, _Connection)
    return connection


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


class _Connection(RequestHandler):
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
        return cast(Listener, self._manager)

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
    return _invalid() if 400 <= wrong.status < 500 else InternalError()


def _invalid() -> Reject:
    return Reject("This is not a valid HTTP request.", code="bad_request", headers=_CLOSE)


def new_id() -> str:
    """A request id: 32 hexadecimal digits, never one that a client chose."""
    return f"{random.getrandbits(128):032x}"


async def read_body(request: Request | web.BaseRequest, *, max_bytes: int, timeout_s: float) -> bytes:
    """The body of a request, bounded in size and time. Raises Reject."""
    headers, content = request.headers, request.content
    coding = headers.get(hdrs.CONTENT_ENCODING)
    if coding is not None and any(each.lower() != "identity" for each in headers.getall(hdrs.CONTENT_ENCODING)):
        raise Reject("Send the body uncompressed.", code="unsupported_media_type", status=415)
    if int(headers.get(hdrs.CONTENT_LENGTH, 0)) > max_bytes:
        raise _too_large(max_bytes)
    expected = headers.get(hdrs.EXPECT)
    if expected is not None and expected.lower() == "100-continue" and request.version >= HttpVersion11:
        _invite(request.protocol)
    if content is EMPTY_PAYLOAD:
        return b""
    if content.is_eof() and content.exception() is None:  # it has come with the head
        parts, size = content._buffer, content.total_bytes
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if size > max_bytes:
            raise _too_large(max_bytes)
        return body
    return await _rest_of(content, max_bytes, timeout_s)


def _invite(protocol: RequestHandler) -> None:
    """Have a client send the body of a request whose head is good."""
    if protocol.transport is not None:
        protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def _rest_of(content: StreamReader, max_bytes: int, timeout_s: float) -> bytes:
    """A body of which not all has come."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while part := await content.readany():
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
    except TimeoutError:
        raise Reject(
            f"The body did not come within {timeout_s:g} seconds.", code="request_timeout", status=408, headers=_CLOSE
        ) from None
    except (RequestPayloadError, http_exceptions.HttpProcessingError):
        raise _invalid() from None
    return b"".join(parts)


def _too_large(max_bytes: int) -> Reject:
    return Reject(f"The body is larger than {max_bytes:,} bytes.", code="request_too_large", status=413, headers=_CLOSE)
