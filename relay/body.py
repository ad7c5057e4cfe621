"""The body of an upstream's reply, pushed; the file that reaches deepest into aiohttp.

aiohttp reads bodies by awaiting a `StreamReader`, which costs a task switch a chunk. Here the class of that one reader
is changed for the length of the reply, so that what the parser feeds to it goes straight to a consumer; and a read that
is one whole HTTP chunk, as most are, goes there past the parser, which stands between two chunks before it and after it.
`transport.set_protocol` would not do: the parser may hold half a chunk, and the connection could never be used again.

`self_test` runs the trick against aiohttp's own parser at start-up; where it fails, and in one run of the end-to-end
suite, `AwaitedBody` does the same by reading.

What to know of aiohttp (3.14):
* `StreamReader` has slots, so the consumer lives in a slot that a reader that is never awaited has no use for: its timer.
* The parser calls `end_http_chunk_receiving` for every HTTP chunk. It must not count: it pauses reading at 16,384.
* An upstream's death arrives in `set_exception` only; `release` and `close` call that too, also after the end.
* What a consumer raises is swallowed by the parser, so consumers do not raise.
* Pausing goes through the protocol, and never after the last byte: the connection may serve another request by then.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, cast

from aiohttp import http_parser
from aiohttp.helpers import BaseTimerContext
from aiohttp.http import HttpProcessingError
from aiohttp.streams import StreamReader

from relay.errors import forget_frames
from relay.protocol import ReplyProtocol
from relay.reply import Reply

# How long an upstream may take to end its body after `[DONE]` before its connection is given up.
DRAIN_S = 1.0


class Consumer(Protocol):
    """Who is pushed to. Methods do not raise, and nothing comes after `on_eof` or `on_error`."""

    def on_data(self, data: bytes) -> None: ...

    def on_chunks(self, data: bytes) -> bool:
        """A read that may be whole HTTP chunks, their sizes and all; whether it was taken. If not, it comes another way."""

    def on_eof(self) -> None: ...

    def on_error(self, error: BaseException) -> None: ...


class Body(Protocol):
    """A body that is being read."""

    def start(self, consumer: Consumer) -> None:
        """Begin to push; what has come already is pushed at once."""

    def pause(self) -> None: ...

    def resume(self) -> None:
        """Never called from inside `on_data`: resuming re-enters the parser."""

    def drain(self) -> None:
        """Nothing more is wanted, but the connection: let the body end by itself for a moment, then close."""

    def close(self) -> None:
        """Close the connection now."""

    @property
    def lost(self) -> bool:
        """Whether the connection is gone and nobody was told: neither an end nor an error will come."""


class _Relay:
    """What sits in the reader's timer slot: the consumer, until the end.

    inside: the parser may stand inside an HTTP chunk. feeding: it is handing over what it has read just now.
    """

    __slots__ = ("consumer", "feeding", "inside", "protocol")

    def __init__(self, consumer: Consumer, protocol: PushProtocol) -> None:
        self.consumer: Consumer | None = consumer
        self.protocol = protocol
        self.inside = True
        self.feeding = False

    def end(self, error: BaseException | None) -> None:
        self.protocol.relay = self.protocol.between = None
        consumer, self.consumer = self.consumer, None
        if consumer is None:
            return
        if error is None:
            consumer.on_eof()
        else:
            consumer.on_error(error)


class PushReader(StreamReader):
    """A StreamReader whose data goes to a consumer. Only ever made of another reader, by `__class__`."""

    __slots__ = ()

    def feed_data(self, data: bytes, size: int = 0) -> bool:
        relay = cast(_Relay, self._timer)
        if relay.consumer is not None:
            relay.feeding = True
            relay.consumer.on_data(data)
            relay.feeding = False
        return False

    def begin_http_chunk_receiving(self) -> None:
        cast(_Relay, self._timer).inside = True

    def end_http_chunk_receiving(self) -> None:
        cast(_Relay, self._timer).inside = False

    def feed_eof(self) -> None:
        super().feed_eof()  # this gives the connection back to the pool
        cast(_Relay, self._timer).end(None)

    def set_exception(self, exc: BaseException, *cause: Any) -> None:
        super().set_exception(exc, *cause)
        cast(_Relay, self._timer).end(exc)


class PushProtocol(ReplyProtocol):
    """A connection that takes from a pushed body, past the parser, reads that are whole HTTP chunks.

    Servers write an event in a chunk and the chunk at once, so most reads are one, or several where we are behind. The
    parser stands between two chunks before them and after them, so it need not see them. Anything else it does see: a
    chunk in pieces, the last one, a size not written in the shortest way.
    """

    relay: _Relay | None = None  # of the body that is pushed
    between: Callable[[bytes], bool] | None = None  # takes them, while the parser stands between two chunks

    def data_received(self, data: bytes) -> None:
        take = self.between
        if take is not None:
            if take(data):
                return
            self.between = None
        ReplyProtocol.data_received(self, data)
        relay = self.relay
        if relay is None:
            return
        if self.exception() is not None:
            self.relay = None  # the parser has given up, and stands nowhere
        elif not relay.inside and relay.consumer is not None and data.endswith(b"\r\n"):
            # Without a line end the beginning of a size may have come, of which the parser tells nobody.
            self.between = relay.consumer.on_chunks


def _protocol(reader: StreamReader) -> PushProtocol:
    """Its connection's."""
    return cast(PushProtocol, reader._protocol)


def push(reader: StreamReader, consumer: Consumer) -> None:
    """Make `reader` push to `consumer`, after what it holds already.

    Raises TypeError if it is no plain StreamReader: an empty body is a singleton shared by all requests.
    """
    if type(reader) is not StreamReader:
        raise TypeError(f"cannot push from a {type(reader).__name__}")
    if reader.is_eof() and reader.exception() is None:
        # All of it is here, and the connection may serve another request: to read it would have the parser go on.
        for data in reader._buffer:
            consumer.on_data(data)
        consumer.on_eof()
        return
    # A consumer that has enough may close the reply from inside `on_data`, and its reader then has an exception.
    while reader.exception() is None and (data := reader.read_nowait()):
        consumer.on_data(data)
    if reader.exception() is not None:
        consumer.on_error(cast(BaseException, reader.exception()))
    elif reader.is_eof():
        consumer.on_eof()
    else:
        protocol = _protocol(reader)
        relay = protocol.relay = _Relay(consumer, protocol)
        reader._timer = cast(BaseTimerContext, relay)
        reader.__class__ = PushReader


class _DrainingBody(ABC):
    """What both kinds of body do after the last byte that anybody wants."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._reader = reply.content

    def drain(self) -> None:
        if not self._reader.is_eof():
            asyncio.get_running_loop().call_soon(self._drain)  # when this read is through, the end may have come

    def _drain(self) -> None:
        if not self._reader.is_eof() and self._reader.exception() is None:
            giving_up = asyncio.get_running_loop().call_later(DRAIN_S, self.close)
            self._reader.on_eof(giving_up.cancel)
            self.resume()  # the end cannot come to a body that is held for a slow client

    @abstractmethod
    def resume(self) -> None:
        """Read on."""

    def close(self) -> None:
        self._reply.close()

    @property
    def lost(self) -> bool:
        return self._reply.lost


class PushedBody(_DrainingBody):
    """The body of `reply`, pushed by the parser itself."""

    _paused = False

    def start(self, consumer: Consumer) -> None:
        if type(self._reader) is StreamReader:
            push(self._reader, consumer)
            if self._paused:
                self.pause()  # again: taking what had come has let more come
        else:
            consumer.on_eof()

    def pause(self) -> None:
        self._paused = True
        if self._reader.is_eof() or self._reader.exception() is not None:
            return
        relay, protocol = cast(object, self._reader._timer), _protocol(self._reader)
        if isinstance(relay, _Relay) and relay.feeding:
            protocol.pause_reading()
        else:
            # Not the parser, which hands nothing over now: it would remember that until it does, and stop behind that,
            # when nobody is left to have it go on.
            protocol.hold()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._reader.is_eof() and self._reader.exception() is None:
                self._reader._protocol.resume_reading()


class AwaitedBody(_DrainingBody):
    """The same by reading: a task, and a switch to it for every chunk."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self._task: asyncio.Task[None] | None = None
        self._readable = asyncio.Event()
        self._readable.set()

    def start(self, consumer: Consumer) -> None:
        self._task = asyncio.get_running_loop().create_task(self._read(consumer))

    async def _read(self, consumer: Consumer) -> None:
        try:
            while data := await self._reader.readany():
                consumer.on_data(data)
                await self._readable.wait()
        except Exception as error:  # noqa: BLE001 - handed on: it is the consumer's to name
            consumer.on_error(error)
            forget_frames(error)  # the reader keeps it
        else:
            consumer.on_eof()

    def pause(self) -> None:
        self._readable.clear()

    def resume(self) -> None:
        self._readable.set()

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        super().close()


class _Recorder:
    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def on_data(self, data: bytes) -> None:
        self.seen.append(data)

    def on_chunks(self, data: bytes) -> bool:
        return False

    def on_eof(self) -> None:
        self.seen.append(b"<eof>")

    def on_error(self, error: BaseException) -> None:
        self.seen.append(b"<error>")


async def self_test() -> None:
    """Raises RuntimeError with the reason if bodies cannot be pushed with the aiohttp that is installed."""
    if http_parser.HttpResponseParser is http_parser.HttpResponseParserPy:
        raise RuntimeError("aiohttp runs without its C parser")
    protocol, recorder = PushProtocol(asyncio.get_running_loop()), _Recorder()
    protocol.connection_made(asyncio.Transport())
    try:
        for _ in range(2):  # the parser goes on from one reply to the next
            answer = protocol.expect()
            protocol.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            _, reader = await answer
            push(reader, recorder)
            protocol.data_received(b"3\r\ntwo\r\n5\r\nth")
            protocol.data_received(b"ree\r\n0\r\n\r\n")
    except (AttributeError, TypeError, ValueError, HttpProcessingError) as error:
        raise RuntimeError(f"aiohttp has changed inside: {type(error).__name__}") from error
    if b"".join(recorder.seen) != b"onetwothree<eof>" * 2 or protocol.should_close:
        raise RuntimeError(f"aiohttp has changed inside: {recorder.seen!r}")


def c_parser_loaded() -> bool:
    """Whether aiohttp's C parser is in use. The one in Python has let smuggled requests through before."""
    return http_parser.HttpRequestParser is not http_parser.HttpRequestParserPy
