"""A reply without a socket: an exchange, a body that says what a test has it say, and a sink that keeps what it is fed.

What a plugin does to a reply is tested with these three and nothing else::

    ex, body, kept = exchange(), HandBody(), Kept()
    StreamDelivery(ex, Shout().on_stream(ex, kept), body).start()
    body.say(*frames.stream(["Hello"]))
    body.eof()
    assert kept.text == "Hello!"
"""

from __future__ import annotations

import asyncio
import io
import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from multidict import CIMultiDict, CIMultiDictProxy

from relay.body import Consumer
from relay.events import Kind
from relay.exchange import Exchange, Operation, Outcome
from relay.log import configure
from relay.metrics import Metrics
from relay.plugin import Services
from relay.pure.openai import Chunk
from relay.pure.request import ChatRequest
from relay.store.port import Store
from relay.told import Server

ROUTE: Final = "/v1/chat/completions"
UPSTREAM: Final = Server("upstream", "upstream.example", 443)
"""Who is asked."""

CHAT: Final[Mapping[str, object]] = {
    "model": "gpt-4",
    "messages": [{"role": "user", "content": "Hi"}],
    "stream": True,
}


def exchange(
    chat: Mapping[str, object] = CHAT,
    *,
    operation: Operation = "chat",
    headers: Mapping[str, str] | None = None,
    id: str = "request-1",
    **changed: object,
) -> Exchange:
    """An exchange whose request is `chat`, with the fields in `changed` changed; of another operation it has none.

    Needs a running loop.
    """
    ex = Exchange(id, operation, headers=CIMultiDictProxy(CIMultiDict(headers or {})))
    if operation == "chat":
        ex.route = ROUTE
        body = json.dumps({**chat, **changed}).encode()
        ex.loads(lambda: ChatRequest(body))
    return ex


class HandBody:
    """A `relay.body.Body` that is spoken by hand. What is said while it is paused, or before its start, comes later.

    reentered: it was resumed from inside `on_data`, which no parser survives.
    """

    lost = False

    def __init__(self) -> None:
        self.paused = False
        self.closed = False
        self.drained = False
        self.reentered = False
        self._consumer: Consumer | None = None
        self._waiting: deque[bytes | BaseException] = deque()
        self._feeding = False

    def say(self, *parts: bytes) -> None:
        self._waiting += parts
        self._push()

    def eof(self) -> None:
        self.say(b"")

    def die(self, error: BaseException | None = None) -> None:
        """The connection breaks."""
        self._waiting.append(error or ConnectionResetError())
        self._push()

    def _push(self) -> None:
        while self._consumer is not None and self._waiting and not self.paused and not self._feeding:
            said, consumer = self._waiting.popleft(), self._consumer
            self._feeding = True
            if isinstance(said, bytes) and said:
                consumer.on_data(said)
            else:
                self._consumer = None
                if isinstance(said, BaseException):
                    consumer.on_error(said)
                else:
                    consumer.on_eof()
            self._feeding = False

    # The body

    def start(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._push()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.reentered |= self._feeding
        self.paused = False
        self._push()

    def drain(self) -> None:
        self.drained = True

    def close(self) -> None:
        self.closed = True
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.on_error(ConnectionError("closed"))  # as aiohttp does


class Kept:
    """A sink that keeps everything.

    chunks: what was fed before the end. late: what was fed after it. ends: the outcomes that came.
    """

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.late: list[Chunk] = []
        self.ends: list[Outcome] = []
        self._ended = asyncio.Event()

    def feed(self, chunk: Chunk) -> None:
        (self.late if self.ends else self.chunks).append(chunk)

    def end(self, outcome: Outcome) -> None:
        self.ends.append(outcome)
        self._ended.set()

    async def ended(self, timeout_s: float = 10.0) -> Outcome:
        """The outcome, when it has come. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._ended.wait()
        return self.ends[0]

    @property
    def outcome(self) -> Outcome | None:
        return self.ends[0] if self.ends else None

    @property
    def raw(self) -> bytes:
        return b"".join(chunk.raw for chunk in self.chunks)

    @property
    def text(self) -> str:
        """The content of all choices, as it came."""
        return "".join(
            choice.get("delta", choice.get("message", {})).get("content") or ""
            for chunk in self.chunks
            for choice in (chunk.json or {}).get("choices", ())
        )


class Told:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.events: list[tuple[Kind, dict[str, object]]] = []

    def publish(self, kind: Kind, **fields: object) -> None:
        self.events.append((kind, fields))

    def of(self, kind: Kind) -> list[dict[str, object]]:
        """The fields of all events of a kind."""
        return [fields for each, fields in self.events if each == kind]


class Lent:
    """What the relay lends to plugins, kept where a test can look.

    folder, data, store: as of `Services`; files go to `folder` unless `data` is given.
    """

    def __init__(self, folder: Path = Path(), store: Store | None = None, *, data: Path | None = None) -> None:
        self._stream = io.BytesIO()
        self.metrics = Metrics(["gpt-4"], ["main"])
        self.told = Told()
        self.services = Services(
            log=configure(self._stream),
            metrics=self.metrics,
            folder=folder,
            data=data or folder,
            store=store,
            events=self.told,
        )

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was logged."""
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    async def count(self, series: str) -> float:
        """The value of one series as it is exported: `relay_moderation_violations_total{label="x",moderator="y"}`."""
        exported, _ = await asyncio.to_thread(self.metrics.render)
        for line in exported.decode().splitlines():
            if line.startswith(series + " "):
                return float(line.rpartition(" ")[2])
        raise LookupError(series)
