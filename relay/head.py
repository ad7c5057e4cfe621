"""The head of a reply, in the bytes in which it leaves.

aiohttp's responses do this well for everybody; for a relay, whose replies all have the same few headers, they are a sixth
of what a request costs, and two writes where one would do. Here is what is left of them: the connection's fate, the
length or the chunks, the date. What is the same in every reply is in bytes already; what a plugin has set is put together
by aiohttp, which refuses line ends in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, hdrs
from aiohttp.http_writer import _serialize_headers
from multidict import CIMultiDict

from relay.request import Request

# aiohttp's name of both versions tells an attacker which holes to try.
SERVER: Final = "relay"

_FIRST: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}" for status in HTTPStatus}
# Replies with these have no body, and no header that speaks of one (RFC 9110, sections 15.2, 15.3.5 and 15.4.5).
BODILESS: Final = frozenset((*range(100, 200), 204, 304))


class Standard:
    """The headers that every reply of a kind has, the date among them, unless somebody has set one of the same name."""

    __slots__ = ("_headers", "_lines", "_second", "names")

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = {**headers, hdrs.SERVER: SERVER, hdrs.DATE: ""}
        self.names = tuple(self._headers)
        self._second = 0.0  # to which `_lines` belong
        self._lines = b""

    def lines(self) -> bytes:
        """As they are sent."""
        now = time()
        if not 0.0 <= now - self._second < 1.0:
            self._second = now // 1.0
            self._headers[hdrs.DATE] = formatdate(self._second, usegmt=True)
            self._lines = "".join(f"{name}: {value}\r\n" for name, value in self._headers.items()).encode()
        return self._lines

    def add(self, headers: CIMultiDict[str]) -> None:
        """Set those that nobody has set."""
        self.lines()
        for name, value in self._headers.items():
            headers.setdefault(name, value)


BARE: Final = Standard({})
JSON: Final = Standard({hdrs.CONTENT_TYPE: "application/json"})


def head(request: Request, status: int, standard: Standard, headers: CIMultiDict[str], length: int | None) -> bytes:
    """The head of the reply to `request`, which is told its status and whether its connection outlives it.

    headers: changed in here. length: of the body, in bytes; None for one in chunks, or that ends with its connection for
    a client that knows no chunks; of no meaning for a status without a body. Raises ValueError if a header holds a line end.
    """
    version, keep_alive = request.version, request.keep_alive
    body = b""
    if status in BODILESS:
        pass
    elif length is not None:
        body = b"Content-Length: %d\r\n" % length
    elif version >= HttpVersion11:
        body = b"Transfer-Encoding: chunked\r\n"
    else:
        keep_alive = False
    lines = standard.lines()
    closes = False  # as somebody has set
    if not _are_beside((*headers,), standard):
        headers.popall(hdrs.TRANSFER_ENCODING, None)  # `pop` takes only the first
        headers.popall(hdrs.CONTENT_LENGTH, None)
        closes = headers.get(hdrs.CONNECTION, "").lower() == "close"
        if any(name in headers for name in standard.names):
            standard.add(headers)
            lines = b""
    first = _FIRST.get(status) or f"HTTP/1.1 {status} "
    if version == HttpVersion10:
        first = "HTTP/1.0" + first[8:]
    if closes:
        keep_alive = False
    elif not keep_alive:
        headers[hdrs.CONNECTION] = "close"
    elif version == HttpVersion10:
        headers[hdrs.CONNECTION] = "keep-alive"
    given = _serialize_headers(first, headers)  # with the empty line that ends a head
    request.keep_alive, request.status = keep_alive, status
    return b"".join((given[:-2], lines, body, b"\r\n"))


def unsendable(headers: Mapping[str, str]) -> str | None:
    """The name of a header that no head can hold: its value is no string, or has a line end in it."""
    for name, value in headers.items():
        try:
            _serialize_headers("", CIMultiDict({name: value}))
        except (TypeError, ValueError):
            return str(name)
    return None


@lru_cache(1024)
def _are_beside(names: tuple[str, ...], standard: Standard) -> bool:
    """Whether none of these headers is a standard one, or says where the body ends or what becomes of the connection.

    Replies have the same few names again and again.
    """
    ours = {name.lower() for name in (*standard.names, hdrs.TRANSFER_ENCODING, hdrs.CONTENT_LENGTH, hdrs.CONNECTION)}
    return ours.isdisjoint(name.lower() for name in names)
