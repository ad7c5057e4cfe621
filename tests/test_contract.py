"""Every promise of the plugin interface, kept with every plugin.

The plugin in question stands between two witnesses, of which one is nearer to the client ("outer") and one nearer to the
upstream ("inner"). What happens to them is what the relay promises, whatever the plugin between them does.

A plugin that is registered is found here by itself; it needs a line in `CONFIGURATIONS`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from relay.app import App
from relay.assembly import registries
from relay.chain import Chain, Link
from relay.config import Upstream, parse
from relay.delivery import Replay, StreamDelivery, WholeDelivery
from relay.errors import PluginError, Reject, RelayError, Unavailable
from relay.exchange import CALLER, Exchange, Outcome
from relay.moderator import Moderator
from relay.options import Context, build
from relay.plugin import OPERATIONS, Plugin, Reply, Sink
from relay.pure.openai import Chunk
from relay.request import Request
from relay.serve import running
from relay.store import port
from relay.testing import Hang, Script, ScriptedUpstream, frames, streamed
from relay.testing.reply import CHAT, HandBody, Kept, Lent, exchange
from relay.upstream import Answer

# A configuration with which the plugin does what it is for, for each registered one.
CONFIGURATIONS: Mapping[str, Mapping[str, object]] = {
    "auth": {"keys": [{"name": "test", "key": "sk-test"}]},
    "bingcheng": {"default_model": "gpt-4"},
    "history": {"max_tokens": 1},
    "moderation": {"moderators": [{"use": "lexicon", "words": ["forbidden"]}]},
    "parameters": {},
    "quota": {"grant": 1000},
    "rate_limit": {"requests_per_minute": 60},
}
# What a request carries that every one of them lets through.
HEADERS = {"Authorization": "Bearer sk-test"}

INSTALLED = registries()


def configured(name: str) -> Plugin:
    if name not in CONFIGURATIONS:
        pytest.fail(f"the plugin {name!r} is registered and has no configuration in {__file__}")
    context = Context(folder=Path(), environ={}, kinds={Moderator: INSTALLED.moderators.find})
    return build(INSTALLED.plugins.find(name), CONFIGURATIONS[name], name, context=context)


class Plenty:
    """A store in which every account has as much as anybody wants."""

    ANSWERS: Mapping[str, Callable[[Sequence[Any]], Any]] = {
        "ledger_reserve": lambda args: [1, args[4]],
        "ledger_renew": lambda args: [1, args[4]],
        "ledger_settle": lambda args: [args[2], 0, 1000, 0],
        "ledger_look": lambda args: [1000, 0, 0, 1000, 0, 0],
    }

    def key(self, tag: str, *parts: str) -> str:
        return ":".join((tag, *parts))

    async def run(self, script: port.Script, keys: Sequence[str], args: Sequence[Any] = ()) -> Any:
        await asyncio.sleep(0)
        return self.ANSWERS[script.name](args)


def lent(plugin: Plugin) -> Lent:
    return Lent(store=Plenty() if plugin.needs_store else None)


# Plugins that do what plugins do, well and badly


class Wrapping:
    """A sink that passes everything on."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def feed(self, chunk: Chunk) -> None:
        self.sink.feed(chunk)

    def end(self, outcome: Outcome) -> None:
        self.sink.end(outcome)


class Wraps(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return Wrapping(sink)


class RaisesInRequest(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        raise ZeroDivisionError


class IsCancelledByItself(Plugin):
    """Waits for work of its own that was cancelled."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        waited: asyncio.Future[None] = ex.loop.create_future()
        waited.cancel()
        await waited
        return None


class AnswersNonsense(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        return {"choices": []}  # type: ignore[return-value]


class Rejects(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        raise Reject("No.", code="no")


class RejectsInStream(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        raise Reject("No.", code="no")


class RaisesInStream(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        raise ZeroDivisionError


class ForgetsItsSink(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return None  # type: ignore[return-value]


class RaisesInFeed(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Raising(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                raise ZeroDivisionError

        return Raising(sink)


class RaisesInEnd(Plugin):
    """Raises in the end, before or after it has passed it on."""

    after: bool = False

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        after = self.after

        class Raising(Wrapping):
            def end(self, outcome: Outcome) -> None:
                if after:
                    self.sink.end(outcome)
                raise ZeroDivisionError

        return Raising(sink)


class RaisesInOnEnd(Plugin):
    async def on_end(self, ex: Exchange) -> None:
        raise ZeroDivisionError


class IsCancelledInOnEnd(Plugin):
    async def on_end(self, ex: Exchange) -> None:
        raise asyncio.CancelledError


class NeverEnds(Plugin):
    async def on_end(self, ex: Exchange) -> None:
        await ex.loop.create_future()


class Answers(Plugin):
    """Gives an answer of its own, in three chunks or as one body."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        if ex.operation == "models":
            return Reply((Chunk.body(b"{}"),))
        if ex.request.stream:
            return Reply(tuple(Chunk(raw, raw[6:-2]) for raw in frames.stream(["ca", "ched"])[:-1]))
        return Reply((Chunk.body(frames.body("cached")),))


class Holds(Plugin):
    """Keeps every chunk to the end."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        held: list[Chunk] = []

        class Holding(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                held.append(chunk)

            def end(self, outcome: Outcome) -> None:
                for chunk in held:
                    self.sink.feed(chunk)
                self.sink.end(outcome)

        return Holding(sink)


class EndsLater(Plugin):
    """Passes the end on from a task, some turns later."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Late(Wrapping):
            def end(self, outcome: Outcome) -> None:
                async def pass_on() -> None:
                    try:
                        await asyncio.sleep(0)
                    finally:
                        self.sink.end(outcome)

                if outcome.kind == "client_gone":
                    self.sink.end(outcome)
                else:
                    ex.spawn(pass_on())

        return Late(sink)


class Spawns(Plugin):
    """Starts work that would never end."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex.spawn(asyncio.Event().wait())
        return None

    async def on_end(self, ex: Exchange) -> None:
        ex.spawn(asyncio.Event().wait())


class SwallowsTheEnd(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Swallowing(Wrapping):
            def end(self, outcome: Outcome) -> None:
                pass

        return Swallowing(sink)


class GoesOnAfterTheEnd(Plugin):
    """Ends twice, and feeds after it."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Talkative(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                super().feed(chunk)
                self.last = chunk

            def end(self, outcome: Outcome) -> None:
                self.sink.end(outcome)
                self.sink.end(Outcome("completed"))
                self.sink.feed(Chunk.body(b"late"))
                ex.loop.call_soon(self.sink.feed, Chunk.body(b"later"))

        return Talkative(sink)


class StopsTwice(Plugin):
    """Has seen enough after the first chunk, and says so again."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Stopping(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                self.sink.feed(chunk)
                ex.stop(Outcome("filtered"))
                ex.stop(Outcome("internal_error"))

        return Stopping(sink)


class Pauses(Plugin):
    """Pauses at every chunk, and resumes in the same call."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Pausing(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                ex.pause(self)
                self.sink.feed(chunk)
                ex.resume(self)

        return Pausing(sink)


WELL_BEHAVED: Mapping[str, Callable[[], Plugin]] = {
    "nothing": Plugin,
    "wraps": Wraps,
    "holds": Holds,
    "ends later": EndsLater,
    "spawns": Spawns,
    "pauses": Pauses,
    **{f"registered: {entry.name}": lambda name=entry.name: configured(name) for entry in INSTALLED.plugins.names()},
}
OTHERS: Mapping[str, Callable[[], Plugin]] = {
    "raises in on_request": RaisesInRequest,
    "is cancelled by itself": IsCancelledByItself,
    "answers nonsense": AnswersNonsense,
    "rejects": Rejects,
    "rejects in on_stream": RejectsInStream,
    "raises in on_stream": RaisesInStream,
    "forgets its sink": ForgetsItsSink,
    "raises in feed": RaisesInFeed,
    "raises in end": RaisesInEnd,
    "raises after end": lambda: RaisesInEnd(after=True),
    "raises in on_end": RaisesInOnEnd,
    "is cancelled in on_end": IsCancelledInOnEnd,
    "answers": Answers,
    "goes on after the end": GoesOnAfterTheEnd,
    "stops twice": StopsTwice,
}
EVERY = {**WELL_BEHAVED, **OTHERS}

every_plugin = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
every_good_plugin = pytest.mark.parametrize("make", WELL_BEHAVED.values(), ids=WELL_BEHAVED)


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


# The promises


@every_case
@every_plugin
async def test_on_end(make: Callable[[], Plugin], case: Case) -> None:
    """`on_end` runs once for each plugin whose `on_request` returned, the last one first, and knows the outcome."""
    talk = await Talk(make(), **case.request).hold(case.ending)
    assert talk.order("settled") == talk.order("on_request")[::-1]
    assert talk.outer.outcome is not None
    if talk.error is not None:
        assert talk.outer.outcome.error is talk.error


@every_case
@every_plugin
async def test_end(make: Callable[[], Plugin], case: Case) -> None:
    """Every sink that was made ends once, from the upstream's side on; and nothing is fed after the end."""
    talk = await Talk(make(), **case.request).hold(case.ending)
    await asyncio.sleep(0)
    assert sorted(talk.order("end")) == sorted(talk.order("on_stream"))
    assert talk.order("end") in ([], ["outer"], ["inner"], ["inner", "outer"], ["outer", "inner"])
    assert len(talk.kept.ends) <= 1
    assert talk.kept.late == []
    last = {who: index for index, (what, who) in enumerate(talk.seen) if what == "end"}
    assert not [who for who, index in last.items() if ("feed", who) in talk.seen[index:]]
    assert not talk.body.reentered


@every_case
@every_good_plugin
async def test_nothing_is_changed(make: Callable[[], Plugin], case: Case) -> None:
    """Order is kept both ways, the outcome is the one that happened, and clean chunks come out as the bytes they were."""
    talk = await Talk(make(), **case.request).hold(case.ending)
    assert talk.errors == []
    if not case.kind:
        assert isinstance(talk.error, Reject)
        assert talk.error.code == "not_you"
        return
    assert talk.order("on_request") == ["outer", "inner"]
    assert talk.order("on_stream") == ["outer", "inner"]  # folded: the last one is asked last and fed first
    assert talk.order("end") == ["inner", "outer"]
    assert talk.order("on_end") == ["inner", "outer"]
    [outcome] = talk.kept.ends
    assert outcome.kind == case.kind
    sent = b"".join(talk.sent).removesuffix(frames.done())
    assert sent.startswith(talk.kept.raw)
    if case.kind == "completed":
        assert talk.kept.raw == sent


@every_good_plugin
@pytest.mark.parametrize("cuts", [None, (), range(0, 4000, 7)], ids=["bytes", "whole", "sevens"])
async def test_cut(make: Callable[[], Plugin], cuts: Iterable[int] | None) -> None:
    """However the upstream cuts its bytes, the same chunks come out."""
    talk = await Talk(make()).hold(completes_cut(cuts))
    assert talk.kept.raw == b"".join(REPLY[:-1])


@pytest.mark.parametrize("name", [entry.name for entry in INSTALLED.plugins.names()])
@given(cuts=st.lists(st.integers(1, 900)))
def test_cut_at_random(name: str, cuts: list[int]) -> None:
    """The same for every registered plugin, at random."""

    async def hold() -> Talk:
        return await Talk(configured(name)).hold(completes_cut(cuts))

    assert asyncio.run(hold()).kept.raw == b"".join(REPLY[:-1])


@every_good_plugin
async def test_whole_is_one_chunk(make: Callable[[], Plugin]) -> None:
    """A reply that is not streamed passes every sink as one chunk."""
    talk = await Talk(make(), stream=False).hold(completes_whole)
    assert talk.order("feed") == ["inner", "outer"]
    assert talk.kept.raw == frames.body("Hello")


@pytest.mark.parametrize("stream", [True, False])
async def test_early_answer(stream: bool) -> None:
    """An early answer is seen by the plugins before it, and by none after it; its giver has its `on_end`."""
    talk = await Talk(Answers(), stream=stream).hold(completes)
    assert talk.kept.text == "cached"
    assert set(talk.order("feed")) == set(talk.order("end")) == {"outer"}
    assert [link.name for link in talk.entered] == ["outer", "subject"]
    assert not talk.body.drained


@every_good_plugin
async def test_early_answer_from_within(make: Callable[[], Plugin]) -> None:
    """Every plugin sees the answer of one behind it, as it would see an upstream's."""
    seen: list[tuple[str, str]] = []
    errors: list[PluginError] = []
    chain = Chain(
        [
            ("outer", Witness(name="outer", seen=[])),
            ("subject", make()),
            ("witness", Witness(name="witness", seen=seen)),
            ("cache", Answers()),
        ],
        lambda error, _: errors.append(error),
    )
    ex, entered, kept = exchange(headers=HEADERS), [], Kept()
    async with AsyncExitStack() as stack:
        for link in chain.links:
            await stack.enter_async_context(link.plugin.lifespan(lent(link.plugin).services))
        answered = await chain.enter(ex, entered)
        assert answered is not None
        Replay(ex, chain.wrap(ex, entered[:-1], kept), answered).start()
        assert (await kept.ended()).kind == "completed"
        ex.outcome = kept.outcome
        await ex.close()
        await chain.leave(ex, entered)
    assert kept.text == "cached"
    assert ("end", "witness") in seen
    assert errors == []


FAILURES = {
    "raises in on_request": "on_request",
    "is cancelled by itself": "on_request",
    "answers nonsense": "on_request",
    "raises in on_stream": "on_stream",
    "forgets its sink": "on_stream",
    "raises in feed": "feed",
    "raises in end": "end",
    "raises after end": "end",
    "raises in on_end": "on_end",
    "is cancelled in on_end": "on_end",
}


@pytest.mark.parametrize(("name", "hook"), FAILURES.items())
async def test_foreign_exceptions(name: str, hook: str) -> None:
    """What a plugin raises that is not ours is named with plugin and hook: a 500, or an error in the stream."""
    talk = await Talk(EVERY[name]()).hold(completes)
    assert [(error.plugin, error.hook) for error in talk.errors] == [("subject", hook)]
    if hook in ("on_request", "on_stream"):
        assert talk.error is talk.errors[0]
    elif hook in ("feed", "end") and name != "raises after end":
        assert talk.kept.ends == [Outcome("internal_error", talk.errors[0])]
    else:
        assert talk.kept.ends == [Outcome("completed")]


@pytest.mark.parametrize("name", ["raises in feed", "raises in end", "raises after end", "raises in on_end"])
@pytest.mark.parametrize("case", [CASES["upstream died"], CASES["drained"], CASES["client gone"]])
async def test_first_error(name: str, case: Case) -> None:
    """A plugin that fails after something else went wrong does not hide what that was."""

    talk = await Talk(EVERY[name]()).hold(case.ending)
    expected = "internal_error" if name == "raises in feed" else case.kind
    assert talk.kept.ends[0].kind == expected


async def test_rejected_in_stream() -> None:
    """A refusal by `on_stream` is the answer, and the sinks that were there already end with it."""
    talk = await Talk(RejectsInStream()).hold(completes)
    assert isinstance(talk.error, Reject)
    assert talk.errors == []
    assert talk.order("end") == ["outer"]
    assert talk.kept.ends == [Outcome("refused", talk.error)]


async def test_swallowed_end() -> None:
    """A plugin that keeps the end keeps it from the plugins before it, and from nobody else: each has its `on_end`."""
    talk = Talk(SwallowsTheEnd())
    talk.kept.ended = lambda timeout_s=0: asyncio.sleep(0)  # type: ignore[assignment]
    await talk.hold(completes)
    assert talk.order("end") == ["inner"]
    assert talk.order("settled") == ["inner", "outer"]


async def test_on_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An `on_end` that does not return is left behind and named; the next one has its turn."""
    monkeypatch.setattr("relay.chain.END_TIMEOUT_S", 0.01)
    talk = await Talk(NeverEnds()).hold(completes)
    assert [(error.plugin, error.hook) for error in talk.errors] == [("subject", "on_end")]
    assert talk.order("settled") == ["inner", "outer"]


def test_registered_moderators() -> None:
    """A moderator is known in logs and metrics as it is registered."""
    for entry in INSTALLED.moderators.names():
        assert INSTALLED.moderators.find(entry.name).known_as == entry.name


# The app's part, without sockets: cancelled at every turn of the loop


class SlowBody:
    """The body of a request, which takes a turn of the loop to come."""

    def __init__(self, data: bytes) -> None:
        self._parts = [data, b""]

    def is_eof(self) -> bool:
        return not self._parts

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        return self._parts.pop(0)


class OneUpstream:
    """Upstreams of which one answers, part by part, a turn of the loop each."""

    models = ("gpt-4",)

    def __init__(self) -> None:
        self.bodies: list[HandBody] = []

    def serving(self, model: str) -> Sequence[Upstream]:
        return ()

    def served(self, answer: Answer) -> None:
        pass

    async def ask(self, ex: Exchange) -> Answer:
        await asyncio.sleep(0)
        body = HandBody()
        self.bodies.append(body)
        parts = [*frames.cut(frames.body("Hello"), [40, 80]), b""]
        for turns, part in enumerate(parts, 1):
            _after(turns, lambda part=part: body.say(part))
        return Answer(Upstream(name="main", base_url="http://127.0.0.1:1/v1", models=["gpt-4"]), body, ex.loop.time())

    def failed(self, answer: Answer, error: RelayError) -> None:
        pass


def _after(turns: int, work: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(work if turns == 0 else lambda: _after(turns - 1, work))


class Handled:
    """An app with one plugin between two witnesses, and one request in it."""

    def __init__(self, plugin: Plugin) -> None:
        self.seen: list[tuple[str, str]] = []
        witnesses = [Witness(name=name, seen=self.seen, patience=2) for name in ("outer", "inner")]
        self.chain = Chain([("outer", witnesses[0]), ("subject", plugin), ("inner", witnesses[1])])
        self.upstreams = OneUpstream()
        loan = lent(plugin)
        config = parse(CONFIG.format(base_url="http://127.0.0.1:1/v1"), Path("relay.toml"), {})
        self.app = App(config, self.chain, self.upstreams, loan.metrics, loan.services.log)  # type: ignore[arg-type]
        self.services = loan.services

    async def cancelled_after(self, turns: int) -> int | None:
        """Handle a request and cancel it after so many turns; the status if it was answered by then."""
        async with AsyncExitStack() as stack:
            for link in self.chain.links:
                await stack.enter_async_context(link.plugin.lifespan(self.services))
            chat: Any = SlowBody(b'{"model":"gpt-4","messages":[{"role":"user","content":"Hi"}]}')
            client = Mock(spec=asyncio.Transport)
            client.is_closing.return_value = False
            client.get_write_buffer_size.return_value = 0
            path = "/v1/chat/completions"
            mocked = make_mocked_request("POST", path, headers=HEADERS, transport=client)
            request = Request(mocked._message, chat, mocked.protocol, None, True)
            handling = asyncio.create_task(self.app.handle(request))
            request.task = handling
            for _ in range(turns):
                await asyncio.sleep(0)
            status = request.status if handling.done() else None
            handling.cancel()
            await asyncio.wait([handling])
            await self.app.drain(10)
        return status


@every_plugin
async def test_cancelled_anywhere(make: Callable[[], Plugin]) -> None:
    """A client that leaves at any await leaves nothing behind: each promise holds, and the upstream is let go."""
    turns, status = 0, None
    while status is None:
        handled = Handled(make())
        status = await handled.cancelled_after(turns)
        turns += 1
        seen = handled.seen
        returned = [who for what, who in seen if what == "on_request"]
        assert [who for what, who in seen if what == "settled"] == returned[::-1]
        made = sorted(who for what, who in seen if what == "on_stream")
        assert sorted(who for what, who in seen if what == "end") == made
        assert all(body.closed or body.drained for body in handled.upstreams.bodies)
    assert turns > 3
    if make in WELL_BEHAVED.values():
        assert status == 200


# The whole relay, where only that will do

CONFIG = """
[server]
port = 0
[admin]
port = 0
[[upstreams]]
name = "main"
base_url = "{base_url}"
models = ["gpt-4"]
"""
OPEN = Script(streamed(REPLY[:2]), Hang())
SETTLES = """
import asyncio
from relay.plugin import Plugin

class Settles(Plugin):
    async def on_request(self, ex):
        self.begun, self.may_end, self.outcomes = asyncio.Event(), asyncio.Event(), []

    async def on_end(self, ex):
        self.begun.set()
        await self.may_end.wait()
        self.outcomes.append(ex.outcome)
"""


@asynccontextmanager
async def streaming(folder: Path) -> AsyncIterator[tuple[App, Any, aiohttp.ClientResponse]]:
    """A relay with a plugin that settles only when it is told to, and a reply that has begun and does not end."""
    (folder / "settling.py").write_text(SETTLES)
    async with ScriptedUpstream(OPEN) as upstream:
        config = parse(
            CONFIG.format(base_url=upstream.base_url) + '[[plugins]]\nuse = "settling:Settles"\n',
            folder / "relay.toml",
            {},
        )
        async with running(config, Lent().services.log) as relay, aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{relay.public_port}/v1/chat/completions"
            async with session.post(url, json=CHAT) as response:
                await response.content.readuntil(b"\n\n")
                [link] = relay.app._chain.links
                yield relay.app, link.plugin, response


async def test_client_leaves_while_settling(tmp_path: Path) -> None:
    """A client that leaves cancels no `on_end`."""
    async with streaming(tmp_path) as (app, plugin, response):
        response.close()
        await plugin.begun.wait()
        plugin.may_end.set()
        assert await app.drain(10) == 0
    assert [outcome.kind for outcome in plugin.outcomes] == ["client_gone"]


async def test_drained(tmp_path: Path) -> None:
    """A stream that is open when the relay stops ends with an error in it, and its plugins have their `on_end`."""
    async with streaming(tmp_path) as (app, plugin, response):
        plugin.may_end.set()
        assert await app.drain(0) == 1
        rest = await response.content.read()
    assert b'"code":"draining"' in rest
    assert rest.endswith(frames.done())
    assert [outcome.kind for outcome in plugin.outcomes] == ["drained"]
