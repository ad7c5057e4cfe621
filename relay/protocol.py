"""A connection to whom we ask, at the level of bytes: aiohttp's parser in C, one request at a time, one reply each.

It stands where aiohttp's own protocol would, which keeps replies in a queue, makes a parser for each of them, and looks after
upgrades, timers and decompression. Here whoever asks waits for a future; the parser is the connection's own and goes on to
the next reply where the last one ended. So it must not see what nobody has asked for: such a connection is used no more.

`relay.body` pushes what the parser reads; `relay.connections` says what is written and when. aiohttp's connector asks for
`transport`, `is_connected`, `close`, `abort` and `closed`; its `StreamReader` for `connected`, `pause_reading` and
`resume_reading`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final, TypeAlias, cast

from aiohttp import ClientConnectionError, ClientOSError, ClientPayloadError, ServerDisconnectedError
from aiohttp.http import HttpProcessingError, HttpResponseParser, RawResponseMessage
from aiohttp.streams import StreamReader
from aiohttp.tcp_helpers import tcp_nodelay

# Of a body that nobody has begun to push yet, or that is read by awaiting.
READ_BUFFER_BYTES: Final = 32_768

Answer: TypeAlias = tuple[RawResponseMessage, StreamReader]
"""The head of a reply, and its body."""


class ReplyProtocol(asyncio.Protocol):
    """Made inside a running loop.

    writing_paused: the connection takes no more for now. should_close: it cannot serve another request.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.transport: asyncio.Transport | None = None
        self.writing_paused = False
        self.should_close = False
        self._loop = loop
        self._parser: HttpResponseParser | None = None
        self._answer: asyncio.Future[Answer] | None = None  # of the request that was made last
        self._content: StreamReader | None = None  # of the reply that came last
        self._held = False  # nothing is read
        self._error: BaseException | None = None  # what came is no HTTP
        self._lost: asyncio.Future[None] | None = None
        self._over = False

    # Asking

    def expect(self) -> asyncio.Future[Answer]:
        """A request is about to be written: what comes from now on is its reply, and the future's result the head of it.

        It raises ServerDisconnectedError, which holds the head as far as it came; ClientOSError, HttpProcessingError.
        """
        self._answer = answer = self._loop.create_future()
        return answer

    def give_up(self) -> None:
        """No head has come in time. One that came in this very turn of the loop counts."""
        self._fail(TimeoutError())

    def rest(self) -> None:
        """A reply has ended, and whatever comes before the next request was not asked for."""
        self._answer = self._content = None

    @property
    def is_between(self) -> bool:
        """Whether nothing stands behind the last reply: not even the beginning of one more, to which the next would be added.

        Only asked while it rests. To the end of all a parser says nothing, unless it has begun something.
        """
        try:
            return self._parser is not None and self._parser.feed_eof() is None
        except Exception:  # noqa: BLE001 - what has begun is no reply
            return False

    def exception(self) -> BaseException | None:
        """What is wrong with what came."""
        return self._error

    def _fail(self, error: BaseException) -> None:
        self.should_close = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _break(self, error: BaseException) -> None:
        """The rest of a reply will not come, and who waits for it would wait for ever."""
        content, self._content = self._content, None
        if content is not None and not content.is_eof() and content.exception() is None:
            content.set_exception(error)

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        tcp_nodelay(self.transport, True)
        self._parser = HttpResponseParser(
            self,  # type: ignore[arg-type]
            self._loop,
            READ_BUFFER_BYTES,
            payload_exception=ClientPayloadError,
            read_until_eof=True,
            auto_decompress=False,
        )

    def data_received(self, data: bytes) -> None:
        parser, answer = self._parser, self._answer
        if parser is None:
            return
        if answer is None:  # some servers say 408 on a connection that was idle for long
            self.should_close = True
            return
        try:
            messages, upgraded, _ = parser.feed_data(data)
        except Exception as cause:  # noqa: BLE001 - whatever the parser raises, nobody knows where it stands
            self._parser = None
            if self.transport is not None:
                self.transport.close()
            self._error = error = _no_http(cause)
            self._fail(error)
            self._break(ClientPayloadError("the reply is no HTTP"))
            return
        for message, content in messages:
            if message.should_close or upgraded:
                self.should_close = True
            if 100 <= message.code < 200 and message.code != 101:
                continue  # the reply comes after it
            if answer.done():
                self.should_close = True  # one too many
            else:
                self._content = content
                answer.set_result((message, content))
        if upgraded:
            self._parser = None  # it speaks HTTP no more

    def connection_lost(self, exc: BaseException | None) -> None:
        self.transport = None
        self._over = True
        head = None
        if self._parser is not None:
            try:
                head = self._parser.feed_eof()
            except Exception as cause:  # noqa: BLE001 - as above
                self._break(ClientPayloadError(f"the reply broke off: {type(cause).__name__}"))
        error = exc
        if exc is None:
            error = ServerDisconnectedError(head)
        elif isinstance(exc, OSError):
            error = ClientOSError(*exc.args)
            error.__cause__ = exc
        self._fail(cast(BaseException, error))
        self._parser = self._content = None
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False

    # Flow control

    def pause_reading(self) -> None:
        """For the one to whom the parser hands over something: it stops behind that."""
        if self._parser is not None:
            self._parser.pause_reading()
        self.hold()

    def hold(self) -> None:
        """Read no more, while the parser hands over nothing."""
        self._held = True
        if self.transport is not None:
            with suppress(RuntimeError):  # it is closing
                self.transport.pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """resume_parser: what it has in hand is handed over first, which may pause again."""
        if not self._held:
            return  # as when a body ends that nobody has held
        self._held = False
        if resume_parser:
            self.data_received(b"")
        if not self._held and self.transport is not None:
            with suppress(RuntimeError):
                self.transport.resume_reading()

    # What aiohttp asks for beside

    @property
    def connected(self) -> bool:
        return self.transport is not None

    def is_connected(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    @property
    def closed(self) -> asyncio.Future[None] | None:
        """Done when the connection is gone; None if it is already."""
        if self._lost is None and not self._over:
            self._lost = self._loop.create_future()
        return self._lost

    def close(self) -> None:
        self._let_go()
        if self.transport is not None:
            self.transport.close()
            self.transport = None

    def abort(self) -> None:
        self._let_go()
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def _let_go(self) -> None:
        self.should_close = True
        self._parser = None
        self._break(ClientConnectionError("the connection was closed"))


def _no_http(cause: BaseException) -> HttpProcessingError:
    """Without what was read."""
    if isinstance(cause, HttpProcessingError):
        error = HttpProcessingError(code=cause.code, message=cause.message, headers=cause.headers)
    else:
        error = HttpProcessingError()
    error.__cause__ = cause
    return error
