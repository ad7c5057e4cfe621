"""Witnesses on both sides of a plugin, and a conversation between them.

One is nearer to the client ("outer") and one nearer to the upstream ("inner"). What happens to them is what the relay
promises, whatever the plugin between them does.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from subjects import HEADERS, Wrapping, lent

from relay.chain import Chain
from relay.delivery import Replay, StreamDelivery, WholeDelivery
from relay.errors import PluginError, Reject, RelayError, Unavailable
from relay.exchange import CALLER, Exchange, Outcome
from relay.plugin import OPERATIONS, Plugin, Reply, Sink
from relay.pure.openai import Chunk
from relay.section import Link
from relay.testing import frames
from relay.testing.reply import HandBody, Kept, exchange
from relay.told import Told

# Witnesses, and a conversation between them


class Witness(Plugin):
    """Writes down what happens to it, and passes everything on. The outer one gives what other plugins need."""

    gives = (CALLER,)
    serves = frozenset(OPERATIONS)

    name: str
    seen: list[tuple[str, str]]
    refuses: bool = False
    patience: int = 0  # turns of the loop that its hooks take
    outcome: Outcome | None = field(init=False, default=None)

    async def on_request(self, ex: Exchange) -> Reply | None:
        await self._wait()
        if self.refuses:
            raise Reject("Not you.", code="not_you")
        ex[CALLER] = self.name
        self.seen.append(("on_request", self.name))
        return None

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        self.seen.append(("on_stream", self.name))
        return Watching(self, sink)

    async def on_end(self, ex: Exchange) -> None:
        self.seen.append(("on_end", self.name))
        await self._wait()
        self.outcome = ex.outcome
        self.seen.append(("settled", self.name))

    async def _wait(self) -> None:
        for _ in range(self.patience):
            await asyncio.sleep(0)


class Watching(Wrapping):
    def __init__(self, witness: Witness, sink: Sink) -> None:
        super().__init__(sink)
        self.witness = witness

    def feed(self, chunk: Chunk) -> None:
        self.witness.seen.append(("feed", self.witness.name))
        super().feed(chunk)

    def end(self, outcome: Outcome) -> None:
        self.witness.seen.append(("end", self.witness.name))
        super().end(outcome)


def told() -> Told:
    """What plugins are told in `on_end`, of a request for which no upstream was asked."""
    return Told("POST", "/v1/chat/completions", 200, time.monotonic(), None)


class Talk:
    """One conversation through a chain of outer witness, plugin and inner witness, without app and sockets.

    errors: what was named for the log.
    """

    def __init__(self, plugin: Plugin, *, inner_refuses: bool = False, **request: object) -> None:
        self.seen: list[tuple[str, str]] = []
        self.errors: list[PluginError] = []
        self.outer = Witness(name="outer", seen=self.seen)
        self.inner = Witness(name="inner", seen=self.seen, refuses=inner_refuses)
        self.chain = Chain(
            [("outer", self.outer), ("subject", plugin), ("inner", self.inner)],
            lambda error, _: self.errors.append(error),
        )
        self.ex = exchange(headers=HEADERS, **request)
        self.body = HandBody()
        self.kept = Kept()
        self.entered: list[Link] = []
        self.error: RelayError | None = None
        self.sent: list[bytes] = []

    async def hold(self, ending: "Ending") -> "Talk":
        """Take it from the request to the end, in the order in which `relay.app` does."""
        async with AsyncExitStack() as stack:
            for link in self.chain.links:
                await stack.enter_async_context(link.plugin.lifespan(lent(link.plugin).services))
            try:
                await self._reply(ending)
            except RelayError as error:
                self.error = error
                self.ex.outcome = Outcome("refused", error)
            if self.ex.outcome is None:
                self.ex.outcome = self.kept.outcome or Outcome("client_gone")
            await self.ex.close()
            self.ex.tells(told)
            await self.chain.leave(self.ex, self.entered)
        return self

    async def _reply(self, ending: "Ending") -> None:
        chain, ex = self.chain, self.ex
        answered = await chain.enter(ex, self.entered)
        sink = chain.wrap(ex, self.entered[:-1] if answered else self.entered, self.kept)
        if answered is not None:
            Replay(ex, sink, answered).start()
        else:
            make = StreamDelivery if ex.request.stream else WholeDelivery
            make(ex, sink, self.body).start()
            ending(self)
        if ex.stopped is not None:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await ex.close()
        await self.kept.ended()

    def says(self, *parts: bytes) -> None:
        """The upstream says something."""
        self.sent += parts
        self.body.say(*parts)

    def times(self, what: str, who: str) -> int:
        return self.seen.count((what, who))

    def order(self, what: str) -> list[str]:
        return [who for happened, who in self.seen if happened == what]


Ending = Callable[[Talk], None]

REPLY = frames.stream(["Hel", "lo", ", 世界"])


def completes(talk: Talk) -> None:
    talk.says(*REPLY)
    talk.body.eof()


def completes_cut(cuts: Iterable[int] | None) -> Ending:
    def ending(talk: Talk) -> None:
        talk.says(*frames.cut(b"".join(REPLY), cuts))
        talk.body.eof()

    return ending


def dies(talk: Talk) -> None:
    talk.says(*REPLY[:2])
    talk.body.die()


def breaks_off(talk: Talk) -> None:
    talk.says(*REPLY[:2])
    talk.body.eof()


def client_goes(talk: Talk) -> None:
    talk.says(*REPLY[:2])
    talk.ex.stop(Outcome("client_gone"))


def client_goes_at_once(talk: Talk) -> None:
    talk.ex.stop(Outcome("client_gone"))


def drains(talk: Talk) -> None:
    talk.says(*REPLY[:2])
    talk.ex.stop(Outcome("drained", Unavailable("Later.", code="draining")))


@dataclass(frozen=True)
class Case:
    """An ending, and the kind of the outcome that a plugin which leaves it alone sees."""

    ending: Ending
    kind: str
    request: Mapping[str, object] = field(default_factory=dict)


def completes_whole(talk: Talk) -> None:
    talk.says(frames.body("Hello"))
    talk.body.eof()


WHOLE = {"stream": False}
CASES = {
    "completed": Case(completes, "completed"),
    "upstream died": Case(dies, "upstream_error"),
    "upstream broke off": Case(breaks_off, "upstream_error"),
    "client gone": Case(client_goes, "client_gone"),
    "client gone at once": Case(client_goes_at_once, "client_gone"),
    "drained": Case(drains, "drained"),
    "whole": Case(completes_whole, "completed", WHOLE),
    "whole, upstream died": Case(lambda talk: talk.body.die(), "upstream_error", WHOLE),
    "whole, client gone": Case(client_goes_at_once, "client_gone", WHOLE),
    "inner refuses": Case(completes, "", {"inner_refuses": True}),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
