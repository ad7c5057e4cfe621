"""One conversation through a chain, without app and sockets: witness, plugin, witness; and the ways in which it can end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from types import coroutine
from typing import Any

from relay.chain import Chain
from relay.delivery import Replay, StreamDelivery, WholeDelivery
from relay.errors import PluginError, RelayError, Unavailable
from relay.exchange import Operation, Outcome
from relay.open_reply import called
from relay.plugin import Plugin, Reply
from relay.pure.openai import Chunk
from relay.section import Link
from relay.testing import frames
from relay.testing.reply import CHAT, UPSTREAM, HandBody, Kept, Lent, exchange
from relay.testing.witness import Called, Probe, Witness, not_you
from relay.told import Told

# Of the loop: how soon what hangs on a client that has left is given up.
_TURNS = 2
_numbers = count(1)  # of requests, whose ids are their own


class Client(Kept):
    """Who reads the reply.

    slow: it holds the upstream after each chunk, for two turns of the loop. forgets: it keeps only how many bytes came.
    over: set when the reply has ended, or the client has left.
    """

    def __init__(self, *, slow: bool = False, forgets: bool = False) -> None:
        super().__init__()
        self.over = asyncio.Event()
        self.left = False
        self._slow = slow
        self._forgets = forgets
        self._ex: Any = None

    def reads(self, ex: Any) -> None:
        self._ex = ex

    def feed(self, chunk: Chunk) -> None:
        if not self._forgets:
            super().feed(chunk)
        if self._slow:
            self._ex.pause(self)
            after(2, lambda: self._ex.resume(self))

    def end(self, outcome: Outcome) -> None:
        super().end(outcome)
        self.over.set()

    def leave(self) -> None:
        self.left = True
        self._ex.stop(Outcome("client_gone"))
        self.over.set()


class Conversation:
    """A plugin between two witnesses, `outer` nearer to the client and `inner` nearer to the upstream, and one request.

    inner: what the inner witness does: refuses (`inner_refuses`, or by this error), or answers early. before: plugins that
    the request meets first. leaves_at: the client leaves while `on_request` waits for the nth time, from 1.

    errors: what was named for the log, each with its cause. entered: the links that the request has passed. error: the
    refusal that was the answer. hung: the reply had not ended after `patience_s`. waits: how often `on_request` has waited.
    went_on: it did so although its client had left. spoilt: see `Probe`; None for a plugin without `on_stream`.
    """

    def __init__(
        self,
        plugin: Plugin,
        *,
        inner_refuses: bool | RelayError = False,
        inner_answers: Reply | None = None,
        before: Iterable[Plugin] = (),
        headers: Mapping[str, str] | None = None,
        lent: Lent | None = None,
        client: Client | None = None,
        leaves_at: int = 0,
        patience_s: float = 10.0,
        seen: list[tuple[str, str]] | None = None,
        request: Mapping[str, object] = CHAT,
        operation: Operation = "chat",
        stream: bool | None = None,
        n: int | None = None,
    ) -> None:
        self.seen: list[tuple[str, str]] = [] if seen is None else seen
        self.errors: list[PluginError] = []
        refusal = not_you() if inner_refuses is True else inner_refuses or None
        self.outer = Witness(name="outer", seen=self.seen)
        self.inner = Witness(name="inner", seen=self.seen, raises=refusal, answers=inner_answers)
        self.chain = Chain(
            [
                ("caller", Called()),
                *((type(each).__name__, each) for each in before),
                ("outer", self.outer),
                ("subject", plugin),
                ("inner", self.inner),
            ],
            self._hear,
        )
        self.subject = next(link for link in self.chain.links if link.plugin is plugin)
        self.probe = self._probed(self.subject, keeps=seen is None)
        self.lent = lent or Lent()
        changed = {name: value for name, value in (("stream", stream), ("n", n)) if value is not None}
        self.ex = exchange({**request, **changed}, operation=operation, headers=headers, id=f"request-{next(_numbers)}")
        self.body = HandBody()
        self.kept = client or Client()
        self.kept.reads(self.ex)
        self.entered: list[Link] = []
        self.answered: Reply | None = None
        self.error: RelayError | None = None
        self.sent: list[bytes] = []
        self.hung = self.went_on = False
        self.waits = 0
        self._asked_at = 0.0
        self._delivery: StreamDelivery | WholeDelivery | None = None
        self._leaves_at = leaves_at
        self._patience_s = patience_s

    async def hold(self, ending: Ending) -> Conversation:
        """Take it from the request to the end, with the plugins open meanwhile."""
        async with AsyncExitStack() as stack:
            for link in self.chain.links:
                await stack.enter_async_context(link.plugin.lifespan(self.lent.services))
            return await self.go(ending)

    async def go(self, ending: Ending) -> Conversation:
        """The same where they are open, in the order in which `relay.app` does it."""
        try:
            await self._reply(ending)
        except RelayError as error:
            self.error = error
            self.ex.outcome = Outcome.of(error)
        except TimeoutError:
            self.hung = True
        self.body.close()
        if self.ex.outcome is None:
            self.ex.outcome = self.kept.outcome or Outcome("client_gone")
        await self.ex.close()
        call = called(self.ex, self._asked_at, self._delivery is not None, self._delivery) if self.ex.asked else None
        told = Told("POST", 200 if self.error is None else self.error.status, monotonic(), call)
        self.ex.tells(lambda: told)
        await self.chain.leave(self.ex, self.entered)
        return self

    async def _reply(self, ending: Ending) -> None:
        chain, ex, client = self.chain, self.ex, self.kept
        if self._leaves_at:
            entering = asyncio.ensure_future(_driven(chain.enter(ex, self.entered), self._tick))
            await asyncio.wait([entering])
            gone = self.waits >= self._leaves_at
            self.went_on = gone and not entering.cancelled()
            if gone:
                entering.cancelled() or entering.exception()
                return
            answered = entering.result()
        else:
            answered = await chain.enter(ex, self.entered)
        self.answered = answered
        sink = chain.wrap(ex, self.entered[:-1] if answered else self.entered, client)
        if answered is not None:
            Replay(ex, sink, answered).start()
        else:
            if ex.stopped is not None:
                raise ex.stopped.error or Unavailable("Stopped.", code="stopped")
            ex.asked, ex.upstream, self._asked_at = True, UPSTREAM, monotonic()
            self._delivery = (StreamDelivery if ex.request.stream else WholeDelivery)(ex, sink, self.body)
            self._delivery.start()
            ending(self)
        async with asyncio.timeout(self._patience_s):
            if ex.stopped is None:
                await client.over.wait()
            if client.left or (ex.stopped is not None and ex.stopped.kind in ("client_gone", "drained")):
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                await ex.close()
            await client.ended(self._patience_s)

    def _tick(self) -> None:
        """`on_request` waits."""
        self.waits += 1
        if self.waits == self._leaves_at:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    def _probed(self, link: Link, *, keeps: bool) -> Probe | None:
        if link.on_stream is None:
            return None
        probe = Probe(link.on_stream, keeps=keeps)
        link.on_stream = probe.on_stream
        return probe

    def _hear(self, error: PluginError, cause: BaseException) -> None:
        error.__cause__ = cause
        self.errors.append(error)

    def says(self, *parts: bytes) -> None:
        """The upstream says something."""
        self.sent += parts
        self.body.say(*parts)

    def times(self, what: str, who: str) -> int:
        return self.seen.count((what, who))

    def order(self, what: str) -> list[str]:
        return [who for happened, who in self.seen if happened == what]


Ending = Callable[[Conversation], None]


@coroutine
def _driven(work: Coroutine[Any, Any, Any], on_wait: Callable[[], None]) -> Generator[Any, Any, Any]:
    """`work`, with a word to `on_wait` whenever it waits for something."""
    told: Any = None
    thrown: BaseException | None = None
    while True:
        try:
            waits_for = work.throw(thrown) if thrown is not None else work.send(told)
        except StopIteration as done:
            return done.value
        on_wait()
        told, thrown = None, None
        try:
            told = yield waits_for
        except BaseException as caught:  # noqa: BLE001 - it is the work's to hear
            thrown = caught


def after(turns: int, work: Callable[[], object]) -> None:
    """Do it so many turns of the loop later."""
    loop = asyncio.get_running_loop()
    loop.call_soon(work if turns <= 1 else lambda: after(turns - 1, work))


def cached(stream: bool) -> Reply:
    """An early answer, in three chunks or as one body."""
    if stream:
        return Reply(tuple(Chunk(raw, raw[6:-2]) for raw in frames.stream(["ca", "ched"])[:-1]))
    return Reply((Chunk.body(frames.body("cached")),))


# How a reply can end

REPLY = frames.stream(["Hel", "lo", ", 世界"])


def completes(talk: Conversation) -> None:
    talk.says(*REPLY)
    talk.body.eof()


def says(data: bytes, cuts: Iterable[int] | None = ()) -> Ending:
    """The whole of a reply, with its bytes cut as `frames.cut` takes it."""

    def ending(talk: Conversation) -> None:
        talk.says(*frames.cut(data, cuts))
        talk.body.eof()

    return ending


def completes_cut(cuts: Iterable[int] | None) -> Ending:
    return says(b"".join(REPLY), cuts)


def paced(events: Iterable[bytes], leaves_after: int | None = None, at_eof: Callable[[], None] | None = None) -> Ending:
    """An event a turn of the loop, until the client leaves after so many turns. at_eof: called before the end."""

    def ending(talk: Conversation) -> None:
        def step(turn: int, left: Iterator[bytes]) -> None:
            if turn == leaves_after:
                talk.kept.leave()
            if talk.kept.over.is_set() or talk.body.closed:
                return
            event = b"" if talk.body.paused else next(left, None)
            if event == b"":
                pass  # the upstream is not read now
            elif event is not None:
                talk.body.say(event)
            else:
                if at_eof is not None:
                    at_eof()
                talk.body.eof()
                if leaves_after is None or turn > leaves_after:
                    return
            after(1, lambda: step(turn + 1, left))

        step(0, iter(events))

    return ending


def dies(talk: Conversation) -> None:
    talk.says(*REPLY[:2])
    talk.body.die()


def breaks_off(talk: Conversation) -> None:
    talk.says(*REPLY[:2])
    talk.body.eof()


def client_goes(talk: Conversation) -> None:
    talk.says(*REPLY[:2])
    talk.ex.stop(Outcome("client_gone"))


def client_goes_at_once(talk: Conversation) -> None:
    talk.ex.stop(Outcome("client_gone"))


def drains(talk: Conversation) -> None:
    talk.says(*REPLY[:2])
    talk.ex.stop(Outcome("drained", Unavailable("Later.", code="draining")))


@dataclass(frozen=True)
class Case:
    """An ending, and the kind of the outcome that a plugin which leaves it alone sees; "" where nobody is asked.

    request: what is other about the conversation.
    """

    ending: Ending
    kind: str
    request: Mapping[str, Any] = field(default_factory=dict)


WHOLE: Mapping[str, Any] = {"stream": False}
CASES: Mapping[str, Case] = {
    "completed": Case(completes, "completed"),
    "upstream died": Case(dies, "upstream_error"),
    "upstream broke off": Case(breaks_off, "upstream_error"),
    "client gone": Case(client_goes, "client_gone"),
    "client gone at once": Case(client_goes_at_once, "client_gone"),
    "drained": Case(drains, "drained"),
    "whole": Case(says(frames.body("Hello")), "completed", WHOLE),
    "whole, upstream died": Case(lambda talk: talk.body.die(), "upstream_error", WHOLE),
    "whole, client gone": Case(client_goes_at_once, "client_gone", WHOLE),
    "inner refuses": Case(completes, "", {"inner_refuses": True}),
}
