"""Listeners: what their connections have in common, and who answers what comes on them.

What a connection speaks is in `relay.http`. It asks its listener for an `answer` where aiohttp would ask for a response:
the public listener's writes it itself, and others make a response for aiohttp to send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import hdrs, web
from aiohttp.http import StreamWriter
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict

from relay.errors import RelayError
from relay.head import JSON, head
from relay.http import MAX_HEADERS, Connection
from relay.request import Request, new_id
from relay.turnstile import Turnstile
from relay.writer import HIGH_WATER_BYTES

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
# The error that was answered, its request id, and what was raised if that was not a client's fault.
OnRefusal = Callable[[RelayError, str, BaseException | None], None]

# How long what is left of a refused body is read, and thrown away.
LINGER_S = 5.0
# How often the connections of a listener that empties are looked at.
LOOK_S = 0.05


class Listener(web.Server):
    """aiohttp's low-level server, with error answers of ours. Answers are cancelled when their client leaves.

    answer: has a request answered, and writes what is the answer. on_refusal: told of every answer that is not from there.
    count: of open connections; on_count is told of each change. turnstile: where requests wait for their turn to begin.
    leaving: every answer is the last one on its connection.
    """

    def __init__(
        self,
        answer: Callable[[Request], Awaitable[None]],
        *,
        on_refusal: OnRefusal | None = None,
        turnstile: Turnstile | None = None,
        **options: Any,
    ) -> None:
        self.answer = answer
        self._on_refusal = on_refusal
        self.leaving = False
        self.count = 0
        self.on_count: Callable[[int], None] | None = None
        super().__init__(
            _never_asked,
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

    def keep(self, idle_s: float) -> None:
        """Close those that come from now on when nobody has asked on them for so long."""
        self._kwargs["keepalive_timeout"] = idle_s

    def leave(self) -> None:
        """Have every further request answered with `Connection: close`, so that its client comes by another one."""
        self.leaving = True

    async def empty(self, quiet_s: float) -> None:
        """Returns when the last connection is closed; those on which nobody has asked for `quiet_s` are. After `leave`."""
        loop = asyncio.get_running_loop()
        quiet: dict[Connection, float] = {}
        while self._connections:
            now = loop.time()
            waiting = (each for each in map(_ours, self._connections) if each.is_quiet)
            quiet = {each: quiet.get(each, now) for each in waiting}
            for each, since in quiet.items():
                if now - since >= quiet_s:
                    each.force_close()
            await asyncio.sleep(LOOK_S)  # aiohttp tells nobody when it begins to wait

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

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


class ResponseListener(Listener):
    """One whose handler makes a response of aiohttp's own request."""

    def __init__(self, handler: Handler, **options: Any) -> None:
        super().__init__(self._respond, **options)
        self._handler = handler

    async def _respond(self, request: Request) -> None:
        protocol, task = request.protocol, cast("asyncio.Task[None]", request.task)
        message = request.message._replace(should_close=not request.keep_alive)
        writer = StreamWriter(protocol, self._loop)
        asked = web.BaseRequest(message, request.content, protocol, writer, task, self._loop)
        try:
            response = await self._handler(asked)
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


async def _never_asked(request: web.BaseRequest) -> web.StreamResponse:
    """What aiohttp's own connections would ask."""
    raise NotImplementedError


def _ours(connection: RequestHandler) -> Connection:
    assert isinstance(connection, Connection)
    return connection
