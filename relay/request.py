"""A client's request as its head says, and the connection on which it is answered.

aiohttp's own request object does this for every web framework; for a relay, which looks at four things of a request, the
making of one costs more than the looking.
"""

from __future__ import annotations

import asyncio

from aiohttp import HttpVersion
from aiohttp.http import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDictProxy


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
