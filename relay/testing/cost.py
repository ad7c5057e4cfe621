"""What a plugin costs: a request, an event of a stream, and an open stream, each beside a chain without it.

Measured in one process, in turns with and without, of which the medians are compared: good to tell microseconds from
milliseconds, and one plugin from another on one machine. It is no benchmark of a relay.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any, Final, NamedTuple

from relay.chain import Chain
from relay.delivery import StreamDelivery
from relay.errors import RelayError
from relay.exchange import Outcome
from relay.plugin import Plugin
from relay.pure.openai import Chunk
from relay.testing import frames
from relay.testing.reply import CHAT, HandBody, Lent, exchange
from relay.testing.witness import Called
from relay.told import Told

TURNS: Final = 15
REQUESTS: Final = 20
EVENTS: Final = 400
# As long as one token of English is, about.
TEXT: Final = ("Hello", ", how", " are", " you", " to", "day", "? ", "I am", " fine", ". ")
EVENTS_SAID: Final = tuple(frames.text(TEXT[number % len(TEXT)]) for number in range(EVENTS))
STREAMS: Final = 20  # that are open together
BUDGET_S: Final = 1.5
_numbers = count(1)


class Cost(NamedTuple):
    """With the plugin, and without it: µs, or bytes."""

    with_it: float
    without: float

    @property
    def own(self) -> float:
        return max(0.0, self.with_it - self.without)

    @property
    def ratio(self) -> float:
        return self.with_it / self.without


class Costs(NamedTuple):
    """request: its way through the chain and back, in µs, without what the upstream and sockets take. chunk: an event of a
    stream, in µs; None of a plugin without `on_stream`. stream: what is kept of one that is open, after 200 events, in bytes."""

    request: Cost
    chunk: Cost | None
    stream: Cost


class Refused(Exception):
    """The plugin lets no request through, so there is nothing to measure."""


async def cost(
    make: Callable[[], Plugin],
    *,
    request: Mapping[str, object] = CHAT,
    headers: Mapping[str, str] | None = None,
    before: Sequence[Plugin] = (),
    lend: Callable[[], Lent] = Lent,
) -> Costs:
    """Takes about a second. Raises Refused."""
    asked: dict[str, Any] = {"chat": request, "headers": headers}
    others = [("caller", Called()), *((type(each).__name__, each) for each in before)]
    without = Chain(others)
    requests: tuple[list[float], list[float]] = ([], [])
    chunks: tuple[list[float], list[float]] = ([], [])
    kept = Cost(0.0, 0.0)
    ends = perf_counter() + BUDGET_S
    for turn in range(TURNS):
        plugin = make()  # a fresh one each turn: one that limits would refuse the hundredth request
        chain = Chain([*others, ("subject", plugin)])
        async with AsyncExitStack() as stack:
            lent = lend()
            for link in chain.links:
                await stack.enter_async_context(link.plugin.lifespan(lent.services))
            await _requests(chain, asked, 1)
            gc.collect()
            gc.disable()
            try:
                for each, times in zip((chain, without), requests, strict=True):
                    times.append(await _requests(each, asked, REQUESTS))
                if chain.links[-1].on_stream is not None:
                    for each, times in zip((chain, without), chunks, strict=True):
                        times.append(await _chunks(each, asked))
            finally:
                gc.enable()
            if not turn:
                kept = Cost(await _kept(chain, asked), await _kept(without, asked))
        if perf_counter() > ends and turn >= 2:
            break
    return Costs(Cost(*map(median, requests)), Cost(*map(median, chunks)) if chunks[0] else None, kept)


async def _requests(chain: Chain, asked: Mapping[str, Any], count: int) -> float:
    """µs for one of so many."""
    took_s = 0.0
    for _ in range(count):
        ex, entered, nobody = exchange(**asked, id=f"request-{next(_numbers)}"), list[Any](), _Nobody()
        began = perf_counter()
        answered = await _entered(chain, ex, entered)
        sink = chain.wrap(ex, entered, nobody)
        if answered is None:
            sink.end(Outcome("completed"))
        ex.outcome = Outcome("completed")
        await _left(chain, ex, entered)
        took_s += perf_counter() - began
    return took_s / count * 1e6


async def _entered(chain: Chain, ex: Any, entered: list[Any]) -> Any:
    try:
        answered = await chain.enter(ex, entered)
    except RelayError as error:
        raise Refused(f"{error.status} {error.code}") from error
    if answered is not None:
        raise Refused("it answers by itself")
    return answered


async def _left(chain: Chain, ex: Any, entered: list[Any]) -> None:
    await ex.close()
    ex.tells(lambda: Told("POST", 200, ex.started, None))
    await chain.leave(ex, entered)


class _Stream:
    """An open stream of which the first events have come."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._entered: list[Any] = []
        self._nobody = _Nobody()
        self._body = HandBody()

    async def begin(self, asked: Mapping[str, Any]) -> None:
        chat = {**asked["chat"], "stream": True}
        self._ex = ex = exchange(**{**asked, "chat": chat}, id=f"request-{next(_numbers)}")
        await _entered(self._chain, ex, self._entered)
        StreamDelivery(ex, self._chain.wrap(ex, self._entered, self._nobody), self._body).start()
        self._body.say(frames.role(), *EVENTS_SAID[:9])

    def say(self, *events: bytes) -> None:
        self._body.say(*events)

    async def end(self) -> None:
        self._body.say(frames.finish(), frames.done())
        async with asyncio.timeout(10):
            await self._nobody.ended.wait()
        self._ex.outcome = Outcome("completed")
        await _left(self._chain, self._ex, self._entered)


async def _chunks(chain: Chain, asked: Mapping[str, Any]) -> float:
    """µs for one of a stream."""
    stream = _Stream(chain)
    await stream.begin(asked)
    began = perf_counter()
    stream.say(*EVENTS_SAID)
    took_s = perf_counter() - began
    await stream.end()
    return took_s / EVENTS * 1e6


async def _kept(chain: Chain, asked: Mapping[str, Any]) -> float:
    """Bytes for each stream that is open and has said something."""
    streams = [_Stream(chain) for _ in range(STREAMS)]
    traced = tracemalloc.is_tracing()
    gc.collect()
    if not traced:
        tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for stream in streams:
            await stream.begin(asked)
            stream.say(*EVENTS_SAID[:200])
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        if not traced:
            tracemalloc.stop()
    for stream in streams:
        await stream.end()
    return (after - before) / STREAMS


class _Nobody:
    """A client that keeps nothing."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def feed(self, chunk: Chunk) -> None: ...

    def end(self, outcome: Outcome) -> None:
        self.ended.set()
