"""A moderator and a plugin for these tests, found beside their relay.toml as anybody's would be."""

import asyncio
import json
import math
from contextlib import asynccontextmanager
from typing import ClassVar

from relay.moderator import PASS, Moderator, Verdict
from relay.plugin import Plugin, Reply
from relay.pure.openai import Chunk


class Waiting(Moderator):
    """Gives no verdict on a text that holds `word`; asked: the texts that it was shown with it."""

    word: str = "ponder"

    asked: ClassVar[list[str]] = []

    async def check(self, text, context):
        if self.word in text:
            self.asked.append(text)
            await asyncio.get_running_loop().create_future()
        return PASS


class Ledger(Plugin):
    """Writes down the end of every exchange, and its own."""

    told: ClassVar[list[str]] = []

    @asynccontextmanager
    async def lifespan(self, services):
        self.told.clear()
        yield
        self.told.append("closed")

    async def on_end(self, ex):
        await asyncio.sleep(0.01)  # what a store takes
        self.told.append(ex.outcome.kind)


class Holding(Plugin):
    """Holds the upstream from the first chunk of a reply on, and lets go of it only when the reply has ended."""

    def on_stream(self, ex, sink):
        return _Holding(ex, sink)


class _Holding:
    def __init__(self, ex, sink):
        self._ex = ex
        self._sink = sink
        self.end = sink.end

    def feed(self, chunk):
        self._ex.pause(self)
        self._sink.feed(chunk)


class Meter(Plugin):
    """Wants to know the usage of every stream, and sees what comes."""

    seen: ClassVar[list[dict]] = []

    async def on_request(self, ex):
        ex.needs_usage = True

    def on_stream(self, ex, sink):
        return _Metered(sink)


class _Metered:
    def __init__(self, sink):
        self._sink = sink
        self.end = sink.end

    def feed(self, chunk):
        if (chunk.json or {}).get("usage"):
            Meter.seen.append(chunk.json["usage"])
        self._sink.feed(chunk)


class Blocking(Moderator):
    """Blocks a text that holds `word`."""

    word: str = "ponder"

    async def check(self, text, context):
        return Verdict("block", "odd") if self.word in text else PASS


class Stopped(Plugin):
    """Lets a request go on only when its exchange has been stopped."""

    async def on_request(self, ex):
        while ex.stopped is None:
            await asyncio.sleep(0)


class Answering(Plugin):
    """Answers in the place of an upstream, as a cache does."""

    text: str = ""

    async def on_request(self, ex):
        if ex.request.stream:
            frame = {"choices": [{"index": 0, "delta": {"content": self.text}, "finish_reason": "stop"}]}
            return Reply((Chunk.event(frame),))
        message = {"role": "assistant", "content": self.text}
        frame = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        return Reply((Chunk.body(json.dumps(frame).encode()),))


class NothingNew(Plugin):
    """Answers the first request with a status that has no body, as a cache does that knows what its client has."""

    status: int = 304
    chunks: bool = False

    async def on_request(self, ex):
        if not hasattr(self, "_answered"):
            self._answered = True
            frame = {"choices": [{"index": 0, "delta": {"content": "never seen"}}]}
            return Reply((Chunk.event(frame),) if self.chunks else (), self.status, {"Content-Length": "7"})
        return None


class Failing(Plugin):
    """Fails when a reply begins."""

    def on_stream(self, ex, sink):
        raise ZeroDivisionError


class Moods(Moderator):
    """Does with every text what `mood` says: passes it, refuses to answer, or has been asked too often."""

    calls_per_second: float = math.inf

    mood: ClassVar[type[Exception] | None] = None

    async def check(self, text, context):
        if self.mood is not None:
            raise self.mood("not now")
        return PASS
