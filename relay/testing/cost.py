"""What a plugin costs: a request, and an event of a stream, each beside a chain without it.

Measured in one process, in turns with and without, of which the medians are compared: good to tell microseconds from
milliseconds, and one plugin from another on one machine. It is no benchmark of a relay.
"""

from __future__ import annotations

import asyncio
import gc
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

TURNS: Final = 15
REQUESTS: Final = 20
EVENTS: Final = 400
# As long as one token of English is, about.
TEXT: Final = ("Hello", ", how", " are", " you", " to", "day", "? ", "I am", " fine", ". ")
BUDGET_S: Final = 1.5
_numbers = count(1)


class Cost(NamedTuple):
    """In µs: with the plugin, and without it."""

    with_us: float
    without_us: float

    @property
    def own_us(self) -> float:
        return max(0.0, self.with_us - self.without_us)

    @property
    def ratio(self) -> float:
        return self.with_us / self.without_us


class Costs(NamedTuple):
    """request: its way through the chain and back, without what the upstream and sockets take. chunk: an event of a stream;
    None of a plugin without `on_stream`."""

    request: Cost
    chunk: Cost | None


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
        if perf_counter() > ends and turn >= 2:
            break
    return Costs(Cost(*map(median, requests)), Cost(*map(median, chunks)) if chunks[0] else None)


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
        await ex.close()
        await chain.leave(ex, entered)
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


async def _chunks(chain: Chain, asked: Mapping[str, Any]) -> float:
    """µs for one of a stream."""
    chat = {**asked["chat"], "stream": True}
    ex, entered, nobody, body = (
        exchange(**{**asked, "chat": chat}, id=f"request-{next(_numbers)}"),
        list[Any](),
        _Nobody(),
        HandBody(),
    )
    await _entered(chain, ex, entered)
    sink = chain.wrap(ex, entered, nobody)
    events = [frames.role(), *(frames.text(TEXT[number % len(TEXT)]) for number in range(EVENTS))]
    StreamDelivery(ex, sink, body).start()
    body.say(*events[:10])
    began = perf_counter()
    body.say(*events[10:])
    took_s = perf_counter() - began
    body.say(frames.finish(), frames.done())
    async with asyncio.timeout(10):
        await nobody.ended.wait()
    ex.outcome = Outcome("completed")
    await ex.close()
    await chain.leave(ex, entered)
    return took_s / (EVENTS - 9) * 1e6


class _Nobody:
    """A client that keeps nothing."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def feed(self, chunk: Chunk) -> None: ...

    def end(self, outcome: Outcome) -> None:
        self.ended.set()
