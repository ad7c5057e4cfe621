"""HTTP as the public listener speaks it: what is refused before a request means anything, in our error bodies.

aiohttp answers errors below the handler itself, as text/plain, echoing what it could not read, with a traceback in the
log. `Listener` takes that place: the same statuses, our shape, nothing echoed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import HttpVersion11, hdrs, http_exceptions, web
from aiohttp.web_protocol import RequestHandler

from relay.errors import Reject, RelayError
from relay.writer import error_response

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# aiohttp's name of both versions tells an attacker which holes to try.
SERVER = "relay"


class Listener(web.Server):
    """aiohttp's low-level server, with error answers of ours. Handlers are cancelled when their client leaves."""

    def __init__(self, handler: Handler, **options: Any) -> None:
        super().__init__(handler, handler_cancellation=True, access_log=None, auto_decompress=False, **options)

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    __slots__ = ()

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
        if isinstance(exc, http_exceptions.LineTooLong):
            error: RelayError = Reject(
                "A header line is too long; send at most 8,190 bytes.", code="headers_too_large", status=431
            )
        elif 400 <= status < 500:
            error = Reject("This is not a valid HTTP request.", code="bad_request", status=status)
        else:
            error = RelayError("Internal server error.", code="internal_error", status=status)
        response = error_response(error, {"x-request-id": new_id(), hdrs.SERVER: SERVER})
        response.force_close()
        return response


def new_id() -> str:
    """A request id: 32 hexadecimal digits, never one that a client chose."""
    return f"{random.getrandbits(128):032x}"


async def read_body(request: web.BaseRequest, *, max_bytes: int, timeout_s: float) -> bytes:
    """The body of a request, bounded in size and time. Raises Reject."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise Reject("Send the body uncompressed.", code="unsupported_media_type", status=415)
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    if request.content.is_eof():  # it has come with the head
        body: bytes = request.content.read_nowait()
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body
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
            f"The body did not come within {timeout_s:g} seconds.", code="request_timeout", status=408
        ) from None
    return b"".join(parts)


def _too_large(max_bytes: int) -> Reject:
    return Reject(f"The body is larger than {max_bytes:,} bytes.", code="request_too_large", status=413)
