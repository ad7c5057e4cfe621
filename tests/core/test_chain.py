import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from relay.chain import Chain
from relay.errors import PluginError, Reject, Unavailable
from relay.exchange import CALLER, Exchange, Key, Operation, Outcome
from relay.options import ConfigError
from relay.plugin import Plugin, Reply, Services, Sink, hook_problems
from relay.pure.openai import Chunk
from relay.pure.request import InvalidRequest, JsonObject
from relay.section import Link, hooks
from relay.testing.reply import Kept, exchange

BALANCE = Key("balance", int)
EVERYTHING: frozenset[Operation] = frozenset({"chat", "models"})
CHUNK = Chunk.body(b"{}")
COMPLETED = Outcome("completed")


class Names(Plugin):
    gives = (CALLER,)


class Counts(Plugin):
    needs = (CALLER,)
    gives = (BALANCE,)


class Spends(Plugin):
    needs = (CALLER, BALANCE)


class NamesAll(Names):
    serves = EVERYTHING


class CountsAll(Counts):
    serves = EVERYTHING


def problems(*plugins: Plugin) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        Chain((type(plugin).__name__.lower(), plugin) for plugin in plugins)
    return caught.value.problems


# What plugins need and give


@pytest.mark.parametrize(
    "plugins",
    [
        (),
        (Names(), Counts(), Spends()),
        (NamesAll(), Counts()),
        (NamesAll(), CountsAll()),
        (Names(), Names(), Counts()),
    ],
)
def test_fits(plugins: tuple[Plugin, ...]) -> None:
    """A chain is sound if each need is given by an earlier plugin."""
    assert len(Chain((str(place), plugin) for place, plugin in enumerate(plugins)).links) == len(plugins)


@pytest.mark.parametrize(
    ("plugins", "expected"),
    [
        ((Counts(),), ("plugin 'counts' needs 'caller' and no plugin before it gives it: add `auth`, or another plugin that does",)),
        ((Counts(), Names()),
         ("plugin 'counts' needs 'caller' and no plugin before it gives it: a later one does; move it up",)),
        ((Spends(), Counts()),
         ("plugin 'spends' needs 'caller' and no plugin before it gives it: add `auth`, or another plugin that does",
          "plugin 'spends' needs 'balance' and no plugin before it gives it: a later one does; move it up",
          "plugin 'counts' needs 'caller' and no plugin before it gives it: add `auth`, or another plugin that does")),
        ((Names(), CountsAll()),
         ("plugin 'countsall' needs 'caller' and serves models, where 'names', which gives it, takes no part",)),
    ],
)  # fmt: skip
def test_does_not_fit(plugins: tuple[Plugin, ...], expected: tuple[str, ...]) -> None:
    """A need that nobody gives, or a later plugin, or one that does not serve the same, is named with the remedy."""
    assert expected == problems(*plugins)


class Looks(Plugin):
    uses = (CALLER,)


def test_what_is_used_is_given_before() -> None:
    """A plugin may do without, but whoever gives what it uses stands before it."""
    for plugins in ((Looks(),), (Names(), Looks()), (Looks(), Looks())):
        Chain((str(place), plugin) for place, plugin in enumerate(plugins))
    assert ("plugin 'looks' has to stand behind 'names': move it down",) == problems(Looks(), Names())
    assert 1 == len(problems(type("Needs", (Looks,), {"needs": (CALLER,)})(), Names()))
    assert ("plugin 'looks' has to stand behind 'namesall': move it down",) == problems(Names(), Looks(), NamesAll())


def test_own_gift() -> None:
    """A plugin cannot need what only it gives."""

    class Circular(Plugin):
        needs = gives = (CALLER,)

    assert len(problems(Circular())) == 1


# Hooks


def with_method(name: str, method: object = lambda self: None) -> type[Plugin]:
    return type("Shout", (Plugin,), {name: method})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("on_reqest", "Shout.on_reqest is no hook; did you mean 'on_request'?"),
        ("onRequest", "Shout.onRequest is no hook; did you mean 'on_request'?"),
        ("request", "Shout.request is no hook; did you mean 'on_request'?"),
        ("on_steam", "Shout.on_steam is no hook; did you mean 'on_stream'?"),
        ("lifepsan", "Shout.lifepsan is no hook; did you mean 'lifespan'?"),
        ("on_ended", "Shout.on_ended is no hook; did you mean 'on_end'?"),
        ("on_chunk", "Shout.on_chunk is no hook; the hooks are lifespan, translate, on_request, on_stream, on_end"),
    ],
)
def test_misspelt(name: str, expected: str) -> None:
    """A public method that looks like a hook and is none is refused, with what was probably meant."""
    assert [expected] == hook_problems(with_method(name))


@pytest.mark.parametrize("name", ["send", "check", "_on_reqest", "append", "spend", "lifetime", "refund"])
def test_not_misspelt(name: str) -> None:
    """A method that looks like no hook, or is private, is the plugin's own affair."""
    assert hook_problems(with_method(name)) == []


def test_options_are_no_hooks() -> None:
    """An option may be named like a hook."""

    class Careful(Plugin):
        on_failure: str = "closed"
        on_violation: str = "finish"

    assert hook_problems(Careful) == []


def test_inherited_misspelling() -> None:
    """A misspelt hook is found in a base class too, and every one is named."""

    class Derived(with_method("on_reqest")):  # type: ignore[misc]
        def on_steam(self) -> None: ...

    assert [problem.split()[0] for problem in hook_problems(Derived)] == ["Derived.on_reqest", "Derived.on_steam"]


def test_hooks_that_cannot_be_called() -> None:
    """Neither with what they are given, nor as what they have to be; one that takes more, with defaults, can."""

    class Wrong(Plugin):
        async def on_request(self):  # type: ignore[no-untyped-def, override]
            ...

        def on_stream(self, ex, sink, more):  # type: ignore[no-untyped-def, override]
            ...

        async def on_end(self, exchange, more=None):  # type: ignore[no-untyped-def, override]
            ...

        def lifespan(self, services):  # type: ignore[no-untyped-def, override]
            yield

    assert hook_problems(Wrong) == [
        "Wrong.lifespan has to be async def, with @asynccontextmanager",
        "Wrong.on_request is called as on_request(self, ex), and is defined as on_request(self)",
        "Wrong.on_stream is called as on_stream(self, ex, sink), and is defined as on_stream(self, ex, sink, more)",
    ]


def test_hooks_that_cannot_run() -> None:
    """A hook that is awaited and cannot be, or the reverse, and an operation that there is not, stop the start."""

    class Wrong(Plugin):
        serves: ClassVar = {"chat", "modles"}

        def on_request(self, ex: Exchange) -> None: ...  # type: ignore[override]

        async def on_stream(self, ex: Exchange, sink: Sink) -> Sink: ...  # type: ignore[override]

        def on_end(self, ex: Exchange) -> None: ...  # type: ignore[override]

        async def lifespan(self, services: Services) -> AsyncIterator[None]:
            yield

    assert problems(Wrong()) == tuple(
        f"plugin 'wrong': Wrong.{problem}"
        for problem in (
            "on_request has to be async def",
            "on_stream has to be def, not async def",
            "on_end has to be async def",
            "lifespan needs @asynccontextmanager",
            "serves: unknown operation 'modles'; did you mean 'models'?",
        )
    )


class Dialect(Plugin):
    """Speaks one path: the body says a question and nothing else."""

    routes: ClassVar = ("/ask",)

    def translate(self, path: str, body: JsonObject) -> JsonObject:
        question = body.get("ask")
        if question is None:
            raise Reject("No.", code="no")
        if question == "what":
            return question  # type: ignore[no-any-return] # as a plugin may that is not typed
        body.set("messages", [{"role": "user", "content": question.strip()}])
        body.remove("ask")
        return body


class TestDialects:
    def test_a_body_is_translated(self) -> None:
        chain = Chain([("dialect", Dialect())])
        assert list(chain.routes) == ["/ask"]
        exact = b'"seed":100000000000000000000000000000000000000000000000000000000000'
        read = chain.read("/ask", b'{"ask":" why ",%b}' % exact)
        assert read.encode() == b'{%b,"messages":[{"role":"user","content":"why"}]}' % exact
        chat = b'{ "messages":[{"role":"user","content":"Hi"}], "ask":"x" }'
        assert chain.read("/v1/chat/completions", chat).encode() == chat

    @pytest.mark.parametrize("body", [b"{", b"[]", b'{"ask":"a","ask":"b"}', b'{"ask":"a","stream":"yes"}'])
    def test_what_is_checked_of_every_body(self, body: bytes) -> None:
        with pytest.raises(InvalidRequest):
            Chain([("dialect", Dialect())]).read("/ask", body)

    def test_what_goes_wrong_has_a_name(self) -> None:
        chain = Chain([("dialect", Dialect())])
        with pytest.raises(Reject):
            chain.read("/ask", b"{}")
        for wrong in (b'{"ask":1}', b'{"ask":"what"}'):
            with pytest.raises(PluginError, match="'dialect' failed in translate"):
                chain.read("/ask", wrong)

    def test_a_path_has_one_owner(self) -> None:
        class Thief(Dialect):
            routes: ClassVar = ("/v1/models", "/ask")

        with pytest.raises(ConfigError) as refused:
            Chain([("dialect", Dialect()), ("thief", Thief())])
        assert refused.value.problems == (
            "plugin 'thief': /v1/models is served by the relay itself; remove one of them",
            "plugin 'thief': /ask is served by plugin 'dialect'; remove one of them",
        )

    def test_routes_and_translate_belong_together(self) -> None:
        class Mute(Plugin):
            routes: ClassVar = ("/ask",)

        class Lost(Dialect):
            routes: ClassVar = ()

        class Wrong(Dialect):
            routes: ClassVar = ("ask", "/a b", "/ask/")

        for cls in (Mute, Lost):
            assert hook_problems(cls) == [
                f"{cls.__name__}: `routes` and `translate` belong together; define both, or neither"
            ]
        assert len(hook_problems(Wrong)) == 3


def test_hooks() -> None:
    """A plugin has the hooks that it or a base of it overrides."""

    class Base(Plugin):
        async def on_end(self, ex: Exchange) -> None: ...

    class Both(Base):
        async def on_request(self, ex: Exchange) -> Reply | None: ...

    assert hooks(Link("both", Both())) == ("on_request", "on_end")
    assert hooks(Link("plain", Plugin())) == ()


# Walking it


class Passes(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        return None


async def test_enter() -> None:
    """A request passes the plugins that serve its operation, in order; one without any hook is not in its way."""

    class PassesAll(Passes):
        serves = EVERYTHING

    chain = Chain([("all", PassesAll()), ("chat", Passes()), ("nothing", Plugin())])
    for operation, expected in (("chat", ["all", "chat"]), ("models", ["all"])):
        entered: list[Link] = []
        assert await chain.enter(exchange(operation=operation), entered) is None
        assert [link.name for link in entered] == expected


async def test_nobody_listens() -> None:
    """A chain without streaming plugins feeds the writer by no detour, until the end."""
    kept = Kept()
    chain = Chain([("passes", Passes())])
    sink = chain.wrap(exchange(), chain.links, kept)
    assert sink.feed == kept.feed
    sink.feed(CHUNK)
    sink.end(COMPLETED)
    sink.end(Outcome("client_gone"))
    sink.feed(CHUNK)
    assert kept.chunks == [CHUNK]
    assert kept.late == []
    assert kept.ends == [COMPLETED]


class Breaking(Plugin):
    """Its sink raises where it is told to."""

    in_feed: bool = False
    in_end: bool = False

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return BreakingSink(self, sink)


class BreakingSink:
    def __init__(self, plugin: Breaking, sink: Sink) -> None:
        self.plugin = plugin
        self.sink = sink
        self.ends = 0

    def feed(self, chunk: Chunk) -> None:
        if self.plugin.in_feed:
            raise ZeroDivisionError
        self.sink.feed(chunk)

    def end(self, outcome: Outcome) -> None:
        self.ends += 1
        if self.plugin.in_end:
            raise ZeroDivisionError
        self.sink.feed(CHUNK)
        self.sink.end(outcome)


class Broken:
    """A chain of one breaking plugin, and what came of it."""

    def __init__(self, **where: bool) -> None:
        self.errors: list[PluginError] = []
        chain = Chain([("breaking", Breaking(**where))], lambda error, _: self.errors.append(error))
        self.ex, self.kept = exchange(), Kept()
        self.sink = chain.wrap(self.ex, chain.links, self.kept)

    @property
    def hooks(self) -> list[str]:
        return [error.hook for error in self.errors]


async def test_broken_feed() -> None:
    """A sink that has raised is fed no more, is told the end all the same, and nobody hears what it says then."""
    broken = Broken(in_feed=True)
    broken.sink.feed(CHUNK)
    broken.sink.feed(CHUNK)
    assert broken.hooks == ["feed"]
    assert broken.ex.stopped is not None
    assert broken.kept.ends == []
    broken.sink.end(COMPLETED)
    broken.sink.end(COMPLETED)
    assert broken.kept.ends == [Outcome("internal_error", broken.errors[0])]
    assert broken.kept.chunks == broken.kept.late == []
    assert broken.sink._sink.ends == 1  # type: ignore[attr-defined]


async def test_broken_twice() -> None:
    """Of a sink that raises again in its end only the first failure is named."""
    broken = Broken(in_feed=True, in_end=True)
    broken.sink.feed(CHUNK)
    broken.sink.end(COMPLETED)
    assert broken.hooks == ["feed"]
    assert broken.kept.ends == [Outcome("internal_error", broken.errors[0])]


FAILED = Outcome("drained", Unavailable("Later.", code="draining"))


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (COMPLETED, "internal_error"),
        (Outcome("filtered"), "internal_error"),
        (Outcome("client_gone"), "client_gone"),
        (FAILED, "drained"),
    ],
)
async def test_broken_end(outcome: Outcome, kind: str) -> None:
    """The end is passed on for a sink that raised in it: as its failure, unless something had gone wrong before."""
    broken = Broken(in_end=True)
    broken.sink.feed(CHUNK)
    broken.sink.end(outcome)
    assert broken.hooks == ["end"]
    assert [end.kind for end in broken.kept.ends] == [kind]
    if outcome is FAILED:
        assert broken.kept.ends == [FAILED]


# Leaving it


async def test_leave_waits() -> None:
    """An `on_end` waits as any coroutine does: for turns of the loop, for results, and for what is raised into it."""
    seen: list[object] = []

    class Waits(Plugin):
        async def on_end(self, ex: Exchange) -> None:
            result, fault = ex.loop.create_future(), ex.loop.create_future()
            ex.loop.call_soon(result.set_result, "result")
            ex.loop.call_soon(fault.set_exception, KeyError("fault"))
            seen.append(await result)
            await asyncio.sleep(0)
            with pytest.raises(KeyError):
                await fault
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await ex.loop.create_future()
            seen.append(asyncio.current_task())

    chain = Chain([("waits", Waits())], lambda error, cause: seen.append(cause))
    leaving = asyncio.create_task(chain.leave(exchange(), chain.links))
    await leaving
    assert seen == ["result", leaving]


async def test_leave_makes_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An `on_end` that waits for nothing is bounded by itself."""
    seen: list[object] = []

    class Settles(Plugin):
        async def on_end(self, ex: Exchange) -> None:
            seen.append("settled")

    monkeypatch.setattr("asyncio.timeout", seen.append)
    chain = Chain([("first", Settles()), ("second", Settles())])
    await chain.leave(exchange(), chain.links)
    assert seen == ["settled", "settled"]


async def test_leave_goes_on() -> None:
    """When the task that leaves is cancelled after all, the `on_end` that runs is cut short and the others follow."""
    seen: list[str] = []

    class Settles(Plugin):
        waits: bool = False

        async def on_end(self, ex: Exchange) -> None:
            if self.waits:
                await ex.loop.create_future()
            seen.append("settled")

    errors: list[PluginError] = []
    chain = Chain(
        [("first", Settles()), ("second", Settles(waits=True)), ("third", Settles())],
        lambda error, _: errors.append(error),
    )
    leaving = asyncio.create_task(chain.leave(exchange(), chain.links))
    await asyncio.sleep(0)
    leaving.cancel()
    await leaving
    assert seen == ["settled", "settled"]
    assert [str(error) for error in errors] == ["plugin 'second' failed in on_end"]


async def test_cancelled_request() -> None:
    """A cancellation of the request goes through the chain as it is: no plugin is blamed for it."""
    errors: list[PluginError] = []

    class Waits(Plugin):
        async def on_request(self, ex: Exchange) -> Reply | None:
            await ex.loop.create_future()
            return None

    entered: list[Link] = []
    chain = Chain([("passes", Passes()), ("waits", Waits())], lambda error, _: errors.append(error))
    entering = asyncio.create_task(chain.enter(exchange(), entered))
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert errors == []
    assert [link.name for link in entered] == ["passes"]


@pytest.mark.parametrize("name", ["needs", "uses", "gives", "tells"])
def test_a_key_by_its_name(name: str) -> None:
    """It is no key, and is not looked at as one."""
    cls = type("Shout", (Plugin,), {name: ("caller",)})
    assert problems(cls()) == (
        f"plugin 'shout': Shout.{name}: 'caller' is no Key; write the key itself, as in {name} = (CALLER,)",
    )


@pytest.mark.parametrize("reply", [Reply("hello"), Reply((), headers=["x"])])  # type: ignore[arg-type]
async def test_a_reply_that_is_none(reply: Reply) -> None:
    """Whoever gives it is named."""

    class Answers(Plugin):
        async def on_request(self, ex: Exchange) -> Reply | None:
            return reply

    with pytest.raises(PluginError) as failed:
        await Chain([("answers", Answers())]).enter(exchange(), [])
    assert (failed.value.plugin, failed.value.hook) == ("answers", "on_request")
