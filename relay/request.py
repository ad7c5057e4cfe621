"""A client's request as its head says, the connection on which it is answered, and its body.

aiohttp's own request object does this for every web framework; for a relay, which looks at four things of a request, the
making of one costs more than the looking.

What to know of aiohttp (3.14), beside what it documents: a body whose end has come with the rest is in its reader's
`_buffer`, and nobody is held up by it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

from aiohttp import HttpVersion, HttpVersion11, hdrs, http_exceptions
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web import BaseRequest
from aiohttp.web_protocol import RequestHandler, RequestPayloadError
from multidict import CIMultiDictProxy

from relay.errors import Reject

_CLOSE: Mapping[str, str] = {hdrs.CONNECTION: "close"}


class Request:
    """See the head of this file.

    message: all that the head says. content: the body. protocol: the connection. task: in which it is answered.
    keep_alive: whether the connection serves another request after this one.
    status: of the answer, when its head has been made; until then 0, and another answer may still be given.
    """

    __slots__ = ("content", "headers", "keep_alive", "message", "protocol", "status", "task", "version")

    def __init__(
        self,
        message: RawRequestMessage,
        content: StreamReader,
        protocol: RequestHandler,
        task: asyncio.Task[None] | None,
        keep_alive: bool,
    ) -> None:
        self.message = message
        self.headers: CIMultiDictProxy[str] = message.headers
        self.version: HttpVersion = message.version
        self.content = content
        self.protocol = protocol
        self.task = task
        self.keep_alive = keep_alive
        self.status = 0


def new_id() -> str:
    """A request id: 32 hexadecimal digits, never one that a client chose."""
    return f"{random.getrandbits(128):032x}"


async def read_body(request: Request | BaseRequest, *, max_bytes: int, timeout_s: float) -> bytes:
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
        raise not_http() from None
    return b"".join(parts)


def _too_large(max_bytes: int) -> Reject:
    return Reject(f"The body is larger than {max_bytes:,} bytes.", code="request_too_large", status=413, headers=_CLOSE)


def not_http() -> Reject:
    """The answer to what cannot be read."""
    return Reject("This is not a valid HTTP request.", code="bad_request", headers=_CLOSE)
