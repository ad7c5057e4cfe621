"""One reply on its way from the upstream to the sinks: bytes in, chunks out, one end.

`StreamDelivery` reads an event stream: it knows what ends one ([DONE], an error object, the end of the bytes) and what
must not pass for one. `WholeDelivery` collects a reply that is not streamed into one chunk. `Replay` delivers a reply
that a plugin gave.

Nothing here awaits and nothing raises: what is wrong ends the reply with an outcome that says so. An end that comes from
elsewhere (`stop`) reaches the sinks in the loop's next turn, never from inside a `feed`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final

from relay.body import Body
from relay.errors import InternalError, UpstreamError, upstream_incomplete, upstream_malformed
from relay.exchange import Exchange, Outcome
from relay.plugin import Reply, Sink
from relay.pure.framing import framed, payload, split
from relay.pure.openai import DONE, DONE_EVENT, Chunk, Frame, PlainChunk, readable, usage_of
from relay.pure.plain import plain_text
from relay.pure.shape import Said, Shapes, Stencil, shape_of, unknown
from relay.pure.sse import Decoder, EventTooLarge
from relay.pure.surfaces import IndexUnclearError, finished, says

# A reply that is not streamed is held whole. The longest answers of today's models stay below 1 MiB.
MAX_WHOLE_BYTES: Final = 16 * 1024 * 1024
# How many frames of a stream are looked at for the shape of the others.
MAX_LESSONS: Final = 4
# How much of what a plugin has said is delivered in one turn of the loop: what an upstream says in one read.
AT_ONCE: Final = 64

_COMPLETED: Final = Outcome("completed")
_NONE: Final[Mapping[int, Any]] = {}
_ONLY_OBJECTS: Final = frozenset({dict}).issuperset


class Delivery(ABC):
    """What both kinds share: flow control, and the end that comes once."""

    __slots__ = (
        *("_body", "_ex", "_sink", "done", "empty_reads", "ended_at", "first_at", "first_text_at", "identity", "reads"),
        "usage",
    )

    def __init__(self, ex: Exchange, sink: Sink, body: Body) -> None:
        self._ex = ex
        self._sink = sink
        self._body = body
        self.done = False
        # When the first text came, or the whole of a reply that is not streamed; `time.monotonic`.
        self.first_text_at: float | None = None
        self.first_at: float | None = None  # the first event, whatever it says; else as the first text
        self.ended_at: float | None = None  # when nothing more of it counted
        self.usage: Frame | None = None  # as the upstream told it
        self.identity: tuple[Any, Any] | None = None  # its id and model, likewise
        self.reads = 0  # how many reads there were: who watches for silence compares two looks
        self.empty_reads = 0  # of those, how many told nothing

    @property
    @abstractmethod
    def finishes(self) -> Mapping[int, Any]:
        """The choices that have a finish_reason, by index, and what the upstream gave as such."""

    def start(self) -> None:
        """Let it come."""
        self._ex.attach(self)
        if not self.done:
            self._body.start(self)

    def look(self) -> None:
        """End the reply if its upstream is gone without a word."""
        if not self.done and self._body.lost:
            self._ex.stop(Outcome("upstream_error", _died()))

    # The exchange's levers

    def pause(self) -> None:
        if not self.done:
            self._body.pause()

    def resume(self) -> None:
        if not self.done:
            self._body.resume()

    def stop(self, outcome: Outcome) -> None:
        if not self.done:
            self._over()
            self._body.close()
            self._ex.loop.call_soon(self._sink.end, outcome)

    # The body's consumer

    def on_data(self, data: bytes) -> None:
        self._push(self._take, data)

    def _push(self, take: Callable[[bytes], None], data: bytes) -> None:
        if self.done:
            return
        self.reads += 1
        try:
            take(data)
        except Exception:  # noqa: BLE001 - sinks do not raise, so it is our own fault, and the parser would swallow it
            self._ex.stop(Outcome("internal_error", InternalError()))

    def on_chunks(self, data: bytes) -> bool:
        """A read that may be whole HTTP chunks, before anybody has looked at it; whether it was taken."""
        return False

    def on_eof(self) -> None:
        if not self.done:
            self._eof()

    def on_error(self, error: BaseException) -> None:
        self._fail(_died())

    @abstractmethod
    def _take(self, data: bytes) -> None:
        """Bytes have come."""

    @abstractmethod
    def _eof(self) -> None:
        """The body has ended by itself."""

    def _over(self) -> None:
        """Nothing of what comes counts any more."""
        self.done = True
        self.ended_at = monotonic()

    def _end(self, outcome: Outcome) -> None:
        """The upstream has said all that counts."""
        if not self.done:
            self._over()
            self._body.drain()
            self._sink.end(outcome)

    def _fail(self, error: UpstreamError) -> None:
        """The upstream has said what cannot be used."""
        if not self.done:
            self._over()
            self._body.close()
            self._sink.end(Outcome("upstream_error", error))


class StreamDelivery(Delivery):
    """An event stream."""

    __slots__ = ("_decoder", "_lessons", "_ready", "_said", "_shape", "_shapes", "_stencil", "finishes")

    def __init__(self, ex: Exchange, sink: Sink, body: Body, shapes: Shapes | None = None) -> None:
        """`shapes` is what earlier streams of this upstream have shown of its frames."""
        super().__init__(ex, sink, body)
        self._decoder: Decoder[Chunk] = Decoder(Chunk)
        self.finishes: Mapping[int, Any] = _NONE
        self._shapes = shapes or Shapes()
        self._shape = self._shapes.newest  # of its commonest frame
        self._stencil = Stencil(self._shape) if self._shape is not None else None  # what this stream repeats of it
        self._ready: Stencil | None = None  # the same, while nothing of another event has come
        self._said: Said = unknown  # and by what it tells such events, until the end
        self._lessons = MAX_LESSONS

    def on_chunks(self, data: bytes) -> bool:
        said = self._said(data)
        if said is None:
            return self._on_others(data)
        self.reads += 1
        chunk = PlainChunk()
        chunk.framed = data
        chunk.size = len(data)
        chunk.said = said
        try:
            self._sink.feed(chunk)
        except Exception:  # noqa: BLE001 - as in `_push`
            self._ex.stop(Outcome("internal_error", InternalError()))
        return True

    def _on_others(self, data: bytes) -> bool:
        """The same of a read that is not one more of the events of which all is known."""
        chunks = split(data)
        if len(chunks) == 1:
            self._push(self._take_chunk, data)
        else:
            for chunk in chunks:
                self.on_chunks(chunk)
        return bool(chunks)

    def _take_chunk(self, chunk: bytes) -> None:
        if not self._is_known(chunk):
            self._read(payload(chunk))

    def _take(self, data: bytes) -> None:
        if not self._is_known(framed(data)):
            self._read(data)

    def _is_known(self, chunk: bytes) -> bool:
        """Whether an HTTP chunk is one more of the commonest events, and that has been fed."""
        ready = self._ready
        said = ready.said(chunk) or ready.read(chunk) if ready is not None else None
        if ready is None or said is None:
            return False
        self._said = ready.said
        self._sink.feed(PlainChunk.of(chunk, said))
        return True

    def _over(self) -> None:
        super()._over()
        self._said = unknown

    def _read(self, data: bytes) -> None:
        """Bytes of any events."""
        self._ready, self._said = None, unknown
        try:
            chunks = self._decoder.feed(data)
        except EventTooLarge:
            self._fail(upstream_malformed())
            return
        if not chunks:
            self.empty_reads += 1
        elif self.first_at is None:
            self.first_at = monotonic()
        self._deliver(chunks)
        # Until the first text has come, every frame is looked at for it.
        if self._decoder.idle and self.first_text_at is not None:
            self._ready = self._stencil

    def _deliver(self, chunks: Sequence[Chunk]) -> None:
        feed = self._sink.feed
        for chunk in chunks:
            data = chunk.data
            if self._shape is not None:
                chunk.said = self._shape.said(chunk.raw)
            if chunk.said is not None:
                if self.first_text_at is None:
                    self.first_text_at = monotonic()
                feed(chunk)
            elif data.startswith(DONE):
                if data == DONE:
                    self._end(_completed(chunk))
                else:
                    # Clients stop at whatever begins like this, so it would be the end of their stream but not of ours.
                    self._fail(upstream_malformed())
            elif data:  # an empty event says nothing, and openai-python raises on it
                if chunk.plain:
                    chunk.said = plain_text(data)
                if chunk.said is None:
                    self._look(chunk)
                elif self._lessons:
                    self._learn(chunk.raw)
                if self.first_text_at is None and says(chunk):
                    self.first_text_at = monotonic()
                if not self.done:
                    feed(readable(chunk) if chunk.lenient or not chunk.plain else chunk)
            if self.done:
                return

    def _learn(self, raw: bytes) -> None:
        shape = shape_of(raw)
        if shape is not None:
            self._shape = self._shapes.newest = shape
            self._stencil = Stencil(shape)
            self._lessons -= 1

    def _look(self, chunk: Chunk) -> None:
        """A frame that may finish a choice, or the whole stream with an error."""
        frame = chunk.json
        if frame is None:
            self._fail(upstream_malformed())
            return
        error = _wrong(frame)
        if error is not None:
            self._fail(error)
            return
        self.usage = usage_of(frame) or self.usage
        if self.identity is None:
            self.identity = frame.get("id"), frame.get("model")
        try:
            finishes = finished(frame)
        except IndexUnclearError:
            return  # a guard, if there is one, ends the reply for it
        if finishes:
            self.finishes = {**self.finishes, **finishes}

    def _eof(self) -> None:
        for chunk in self._decoder.close():
            if chunk.data == DONE:
                self._end(_completed(chunk))
                return
            if chunk.data:
                self._look(chunk)
                if self.done:
                    return
                self._sink.feed(readable(chunk))
        # Some servers never send [DONE]; what they said is complete when every choice has finished.
        if len(self.finishes) >= self._ex.request.choices:
            self._end(_COMPLETED)
        else:
            self._end(Outcome("upstream_error", upstream_incomplete()))


class WholeDelivery(Delivery):
    """A reply that is not streamed: one chunk."""

    __slots__ = ("_frame", "_parts", "_size")

    def __init__(self, ex: Exchange, sink: Sink, body: Body) -> None:
        super().__init__(ex, sink, body)
        self._parts: list[bytes] = []
        self._size = 0
        self._frame: Frame | None = None

    @property
    def finishes(self) -> Mapping[int, Any]:
        try:
            return finished(self._frame) if self._frame is not None else _NONE
        except IndexUnclearError:
            return _NONE

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_WHOLE_BYTES:
            self._parts.clear()
            self._fail(upstream_malformed())
        else:
            self._parts.append(data)

    def _eof(self) -> None:
        data = b"".join(self._parts)
        chunk = Chunk(data, data)
        frame = chunk.json
        error = upstream_malformed() if frame is None else _wrong(frame)
        if error is not None:
            self._fail(error)
        elif frame is not None and frame.get("choices") is not None:
            self.first_at = self.first_text_at = monotonic()
            self.usage = usage_of(frame)
            self.identity = frame.get("id"), frame.get("model")
            self._frame = frame
            # What was read strictly is UTF-8.
            self._sink.feed(readable(chunk) if chunk.lenient else chunk)
            self._end(_COMPLETED)
        else:
            self._fail(upstream_malformed())


class Replay:
    """A reply that a plugin gave, delivered as if it came from an upstream: some chunks in each turn of the loop, and none
    while somebody holds the flow."""

    def __init__(self, ex: Exchange, sink: Sink, reply: Reply) -> None:
        self._ex = ex
        self._sink = sink
        self._chunks = iter(reply.chunks)
        self._outcome = Outcome("completed", done=reply.done)
        self._due = False  # in the loop's next turn it goes on
        self.done = False

    def start(self) -> None:
        self._ex.attach(self)
        self.resume()

    def pause(self) -> None:
        """`resume` looks before every chunk."""

    def resume(self) -> None:
        for _ in range(AT_ONCE):
            if self.done or self._ex.paused or self._ex.stopped is not None:
                return
            chunk = next(self._chunks, None)
            if chunk is None:
                self.done = True
                self._sink.end(self._outcome)
                return
            self._sink.feed(chunk)
        if not self._due:
            self._due = True
            self._ex.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._due = False
        self.resume()

    def stop(self, outcome: Outcome) -> None:
        if not self.done:
            self.done = True
            asyncio.get_running_loop().call_soon(self._sink.end, outcome)


def _wrong(frame: Frame) -> UpstreamError | None:
    """What is wrong with a frame as a whole: it reports an error, or clients would break on it."""
    choices = frame.get("choices")
    if (frame.get("error") and not choices) or frame.get("object") == "error":  # vLLM's has no `error`
        return _reported()
    if choices is not None and (type(choices) is not list or not _ONLY_OBJECTS(map(type, choices))):
        return upstream_malformed()
    return None


def _completed(done: Chunk) -> Outcome:
    """The end that an upstream said. No sink looks at this event: what stands in it beside [DONE] is not sent on."""
    return _COMPLETED if done.raw == DONE_EVENT or not done.plain else Outcome("completed", done=done.raw)


def _died() -> UpstreamError:
    return UpstreamError(
        "The connection to the model server broke; what was sent is all there is. Ask again.",
        code="upstream_incomplete",
        kind="died",
    )


def _reported() -> UpstreamError:
    return UpstreamError("The model server reported an error.", code="upstream_error", kind="reported")
