"""HTTP as the public listener speaks it: what is refused before a request means anything, in our error bodies.

aiohttp answers errors below the handler itself, as text/plain, echoing what it could not read, with a traceback in the
log. `Listener` takes that place: the same statuses, our shape, nothing echoed.

It also bounds what aiohttp does not: the time that a head may take, and its size in all. A request without a byte is no
request: an idle connection is closed after `keepalive_timeout`, and nothing is said.

What to know of aiohttp (3.14), beside what it documents:
* Its connection waits for a head in `_waiter`; what it has read, also what it could not, stands in `_messages`.
* A body that breaks off in the middle (a chunk of no size) is reported behind the request that waits for it.
* A `Connection: close` that a handler sets is sent and not kept to; `force_close` is.
* `close` makes a connection deaf at once, also to the rest of a body, and leaves it open if it waits for a head; so does
  `pre_shutdown`. `force_close` closes.
* After a refusal it reads on for `lingering_time`, so that a client which is still sending gets to see the answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from aiohttp import HttpVersion10, HttpVersion11, hdrs, http_exceptions, web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from relay.errors import InternalError, Reject, RelayError
from relay.head import Sent
from relay.writer import HIGH_WATER_BYTES, error_response

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse | Sent]]
# The error that was answered, its request id, and what was raised if that was not a client's fault.
OnRefusal = Callable[[RelayError, str, BaseException | None], None]

# aiohttp's name of both versions tells an attacker which holes to try.
SERVER = "relay"

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
    """

    def __init__(self, handler: Handler, *, on_refusal: OnRefusal | None = None, **options: Any) -> None:
        self._handler = handler
        self._on_refusal = on_refusal
        self._leaving = False
        self.count = 0
        self.on_count: Callable[[int], None] | None = None
        super().__init__(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_headers=MAX_HEADERS,
            lingering_time=LINGER_S,
            request_factory=self._request,
            **options,
        )

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
        self._leaving = True

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

    def _request(self, message: Any, *rest: Any) -> web.BaseRequest:
        # aiohttp goes by what the client has asked for.
        return self._make_request(message._replace(should_close=True) if self._leaving else message, *rest)

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        wrong = _wrong(request)
        if wrong is not None:
            return self.refuse(wrong)
        response = await self._handler(request)
        if isinstance(response, Sent):
            return cast(web.StreamResponse, response)  # as far as aiohttp looks at it
        if response.headers.get(hdrs.CONNECTION) == "close":
            response.force_close()
        return response

    def refuse(self, error: RelayError, cause: BaseException | None = None) -> web.Response:
        """An answer to what is no request, by which no exchange has begun. The connection is closed after it."""
        request_id = new_id()
        response = error_response(error, {"x-request-id": request_id, hdrs.SERVER: SERVER})
        response.force_close()
        if self._on_refusal is not None:
            self._on_refusal(error, request_id, cause)
        return response


def _ours(connection: RequestHandler) -> _Connection:
    assert isinstance(connection, _Connection)
    return connection


def _wrong(request: web.BaseRequest) -> Reject | None:
    """What is wrong with a head that aiohttp takes."""
    if request.version not in (HttpVersion11, HttpVersion10):
        return Reject("Speak HTTP/1.1 or HTTP/1.0.", code="bad_request")
    # aiohttp takes any coding as long as chunks come last, and chunks from HTTP/1.0, which has none (RFC 9112, 6.1).
    transfer = request.headers.get(hdrs.TRANSFER_ENCODING)
    if transfer is not None and (transfer.lower() != "chunked" or request.version != HttpVersion11):
        return Reject(
            "Send the body with its length, or by HTTP/1.1 in chunks and no other coding.", code="bad_request"
        )
    if sum(len(name) + len(value) for name, value in request.raw_headers) > MAX_HEAD_BYTES:
        return Reject(
            f"The headers are too long; send at most {MAX_HEAD_BYTES:,} bytes.", code="headers_too_large", status=431
        )
    return None


class _Connection(RequestHandler):
    """broken: the body of the request that is being handled will not come, since what came is none."""

    __slots__ = ("_late", "broken")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._late: asyncio.TimerHandle | None = None
        self.broken = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waits_for_head():
            # Empty lines between two requests are nothing.
            if self._late is None and data.strip(b"\r\n"):
                self._late = self._loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)
        else:
            self._in_time()
        request = self._current_request
        if (
            self._messages
            and isinstance(self._messages[-1][0], _ErrInfo)
            and request is not None
            and not request.content.is_eof()
        ):
            self.broken = True
            request.content.feed_eof()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    @property
    def is_quiet(self) -> bool:
        """Whether nobody asks or is being answered."""
        return self._waits_for_head() and self._late is None

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _waits_for_head(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _head_is_late(self) -> None:
        self._late = None
        if self._waiter is not None and self._waits_for_head():
            self._messages.append((_ErrInfo(status=408, exc=TimeoutError(), message=""), EMPTY_PAYLOAD))
            self._waiter.set_result(None)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """An answer to what is no request. The connection is closed after it."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun; another one cannot be sent")
        error = _meaning(status, exc)
        return cast(Listener, self._manager).refuse(error, exc if isinstance(error, InternalError) else None)


def _meaning(status: int, exc: BaseException | None) -> RelayError:
    """The error for what aiohttp could not hand to a handler, or what a handler let through."""
    if isinstance(exc, http_exceptions.LineTooLong):
        return Reject("A header line is too long; send at most 8,190 bytes.", code="headers_too_large", status=431)
    if isinstance(exc, http_exceptions.BadHttpMessage) and exc.message == "Too many headers received":
        return Reject(f"Too many header lines; send at most {MAX_HEADERS}.", code="headers_too_large", status=431)
    if status == 408:
        return Reject(
            f"The head of the request did not come within {HEAD_TIMEOUT_S:g} seconds.",
            code="request_timeout",
            status=status,
        )
    return _invalid() if 400 <= status < 500 else InternalError()


def _invalid() -> Reject:
    return Reject("This is not a valid HTTP request.", code="bad_request", headers=_CLOSE)


def new_id() -> str:
    """A request id: 32 hexadecimal digits, never one that a client chose."""
    return f"{random.getrandbits(128):032x}"


async def read_body(request: web.BaseRequest, *, max_bytes: int, timeout_s: float) -> bytes:
    """The body of a request, bounded in size and time. Raises Reject."""
    codings = request.headers.getall(hdrs.CONTENT_ENCODING, ("identity",))
    if any(coding.lower() != "identity" for coding in codings):
        raise Reject("Send the body uncompressed.", code="unsupported_media_type", status=415)
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # aiohttp takes bytes written for an answer that has begun
    if request.content.is_eof():  # it has come with the head
        body: bytes = request.content.read_nowait()
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return _sound(request, body)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while part := await request.content.readany():
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
    except TimeoutError:
        raise Reject(
            f"The body did not come within {timeout_s:g} seconds.", code="request_timeout", status=408, headers=_CLOSE
        ) from None
    return _sound(request, b"".join(parts))


def _sound(request: web.BaseRequest, body: bytes) -> bytes:
    """The body, if it did not break off in the middle."""
    if isinstance(request.protocol, _Connection) and request.protocol.broken:
        raise _invalid()
    return body


def _too_large(max_bytes: int) -> Reject:
    return Reject(f"The body is larger than {max_bytes:,} bytes.", code="request_too_large", status=413, headers=_CLOSE)
