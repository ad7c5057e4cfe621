"""The head of a reply, in the bytes in which it leaves.

aiohttp's responses do this well for everybody; for a relay, whose replies all have the same few headers, they are a sixth
of what a request costs, and two writes where one would do. Here is what is left of them: the connection's fate, the
length or the chunks, the date. Header lines are still put together by aiohttp, which refuses line ends in them.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_writer import _serialize_headers
from multidict import CIMultiDict

_REASONS: Final = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
# Replies with these have no body, and no header that speaks of one (RFC 9110, sections 15.2, 15.3.5 and 15.4.5).
BODILESS: Final = frozenset((*range(100, 200), 204, 304))


class Sent:
    """Stands for a response that has been written already, for aiohttp's server and ours."""

    __slots__ = ("keep_alive", "status")

    def __init__(self, status: int, *, keep_alive: bool) -> None:
        self.status = status
        self.keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to do."""

    async def write_eof(self) -> None:
        """Nothing is left to do."""


def head(request: web.BaseRequest, status: int, headers: CIMultiDict[str], length: int | None) -> tuple[bytes, Sent]:
    """The head of a reply to `request`, and what its handler returns when all is written.

    headers: changed in here. length: of the body, in bytes; None for one in chunks, or that ends with its connection for
    a client that knows no chunks; of no meaning for a status without a body. Raises ValueError if a header holds a line end.
    """
    version, keep_alive = request.version, request.keep_alive
    headers.pop(hdrs.TRANSFER_ENCODING, None)
    headers.pop(hdrs.CONTENT_LENGTH, None)
    if status in BODILESS:
        pass
    elif length is not None:
        headers[hdrs.CONTENT_LENGTH] = str(length)
    elif version >= HttpVersion11:
        headers[hdrs.TRANSFER_ENCODING] = "chunked"
    else:
        keep_alive = False
    if headers.get(hdrs.CONNECTION, "").lower() == "close":
        keep_alive = False
    elif not keep_alive:
        headers[hdrs.CONNECTION] = "close"
    elif version == HttpVersion10:
        headers[hdrs.CONNECTION] = "keep-alive"
    headers.setdefault(hdrs.DATE, rfc822_formatted_time())
    said = _REASONS.get(status) or f"{status} "
    data = _serialize_headers(f"HTTP/{version[0]}.{version[1]} {said}", headers)
    request.writer.output_size = len(data)  # by this aiohttp knows that an answer has begun
    return data, Sent(status, keep_alive=keep_alive)
