"""The very same request gets the very same reply, and nothing is kept of one that did not come whole and well."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from subjects import Answers, EndsLater, Wrapping

from relay import Chunk, Exchange, Outcome, Plugin, Reject, Reply, Sink
from relay.chain import Chain
from relay.delivery import AT_ONCE, StreamDelivery, WholeDelivery
from relay.errors import upstream_incomplete
from relay.exchange import CALLER, STOPPED_BY
from relay.options import ConfigError, Context, build
from relay.testing import frames
from relay.testing.reply import HandBody, Kept, exchange
from relay.testing.run import Ran, run
from relay_plugins.cache import Cache, directives
from relay_plugins.cache.entries import OVERHEAD_BYTES, Entries
from relay_plugins.cache.recorder import CHUNK_BYTES, Recorder, Room
from relay_plugins.lexicon import Lexicon
from relay_plugins.moderation import Moderation

TWO = [frames.role(index=1), frames.text("b", index=1)]


class Clock:
    """Stands still until it is moved."""

    now = 5.0

    def __call__(self) -> float:
        return self.now


def clocked(**options: Any) -> tuple[Cache, Clock]:
    plugin, clock = Cache(**options), Clock()
    plugin._entries = Entries(plugin.max_mb * 2**20, plugin.ttl_s, clock)
    return plugin, clock


def status(ran: Ran) -> str:
    return ran.reply.headers["Cache-Status"]


async def is_kept(plugin: Cache, **asked: Any) -> bool:
    """Whether the same request is answered without an upstream."""
    return (await run(plugin, **asked)).sent is None


# Hits


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_hit(stream: bool) -> None:
    """The first reply, to the byte, whatever the upstream would say now; the headers say whence."""
    plugin, clock = clocked(ttl_s=60)
    first = await run(plugin, stream=stream, answer=["Hel", "lo"])
    clock.now += 20.5
    second = await run(plugin, stream=stream, answer=["Something else"])
    assert "relay; fwd=miss" == status(first)
    assert ("relay; hit; ttl=39", "20") == (status(second), second.reply.headers["Age"])
    assert (None, first.reply.data, "completed") == (second.sent, second.reply.data, second.exchange.outcome.kind)
    assert "Hello" == second.reply.text


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "gpt-5"},
        {"messages": [{"role": "user", "content": "Hi "}]},
        {"stream": False},
        {"stream_options": {"include_usage": True}},
        {"temperature": 1},
        {"temperature": 1.0},
        {"seed": 123456789012345678901234567890},
        {"user": "somebody"},
        {"metadata": {"a": "b"}},
        {"store": True},
        {"unknown": None},
    ],
    ids=str,
)
async def test_whatever_differs_is_another_request(changed: dict[str, Any]) -> None:
    """Down to 1 and 1.0."""
    plugin = Cache()
    for other in ({}, {"temperature": 2}, {"temperature": 1 if changed == {"temperature": 1.0} else 1.0}):
        if other != changed or str(other) != str(changed):
            await run(plugin, **other)
    assert not await is_kept(plugin, **changed)
    assert await is_kept(plugin, **changed)


async def test_the_request_is_what_earlier_plugins_have_made_of_it() -> None:
    """Two that have become one are one; a plugin behind the cache is not asked again."""
    behind = 0

    class Lowers(Plugin):
        async def on_request(self, ex: Exchange) -> Reply | None:
            ex.request.set("messages", [{"role": "user", "content": ex.request.messages[0]["content"].lower()}])
            return None

    class Counts(Plugin):
        async def on_request(self, ex: Exchange) -> Reply | None:
            nonlocal behind
            behind += 1
            ex.request.set("user", "x")  # what it changes is no part of the key
            return None

    cache = Cache(shared_by="everyone")
    for content in ("HI", "Hi", "hi"):
        ran = await run(
            Counts(), before=[Lowers(), cache], messages=[{"role": "user", "content": content}], answer=["Hello"]
        )
        assert "Hello" == ran.reply.text
    assert 1 == behind


def named(name: str) -> Plugin:
    """Stands where `auth` would, after the kit's own."""

    class Named(Plugin):
        gives = (CALLER,)

        async def on_request(self, ex: Exchange) -> Reply | None:
            ex[CALLER] = name
            return None

    return Named()


@pytest.mark.parametrize(("shared_by", "shared"), [("key", False), ("everyone", True)])
async def test_whose_it_is(shared_by: Any, shared: bool) -> None:
    """A key sees its own replies, unless they are everyone's."""
    plugin = Cache(shared_by=shared_by)
    first = await run(plugin, before=[named("a")], answer=["for a"])
    other = await run(plugin, before=[named("b")], answer=["for b"])
    assert shared is (other.sent is None)
    assert shared is (other.reply.data == first.reply.data)
    assert "for a" == (await run(plugin, before=[named("a")])).reply.text


@given(
    st.sampled_from("abc"), st.sampled_from(["", " ", "\n"]), st.sampled_from("abc"), st.sampled_from(["", " ", "\n"])
)
def test_no_caller_and_body_pass_for_others(one: str, space: str, other: str, other_space: str) -> None:
    """What ends the one and begins the other is not left open."""
    plugin, keys = Cache(), []
    for caller, body in ((one + space, other), (one, space + other), (one + other_space, other)):
        ex = _Asking(caller, body)
        keys.append((plugin._key(ex), (caller, body)))  # type: ignore[arg-type]
    for key, asked in keys:
        assert all((key == again) is (asked == others) for again, others in keys)


class _Asking(dict[Any, Any]):
    def __init__(self, caller: str, body: str) -> None:
        super().__init__({CALLER: caller})
        self.request = self
        self.encode = body.encode
        self.upstream_headers: dict[str, str] = {}


# What is never kept


def ended(*events: bytes) -> bytes:
    return b"".join([frames.role(), frames.text("a"), *events])


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        pytest.param(ended(), {}, id="broke off"),
        pytest.param(ended(frames.done()), {}, id="no finish_reason"),
        pytest.param(ended(frames.finish("content_filter"), frames.done()), {}, id="filtered by the upstream"),
        pytest.param(ended(frames.finish("error"), frames.done()), {}, id="an error, says the finish_reason"),
        pytest.param(ended(frames.finish("eos"), frames.done()), {}, id="a finish_reason of its own"),
        pytest.param(ended(frames.error()), {}, id="an error in the stream"),
        pytest.param(ended(frames.finish(), frames.error()), {}, id="an error behind the finish"),
        pytest.param(ended(frames.data("{"), frames.finish(), frames.done()), {}, id="no JSON"),
        pytest.param(ended(frames.finish(), frames.done()), {"n": 2}, id="a choice that never came"),
        pytest.param(ended(*TWO, frames.finish(), frames.done()), {"n": 2}, id="a choice that is not finished"),
        pytest.param(
            ended(*TWO, frames.finish(), frames.finish("content_filter", index=1), frames.done()),
            {"n": 2},
            id="one choice of two filtered",
        ),
        pytest.param(
            ended(frames.chunk([{"index": 1.5, "delta": {}, "finish_reason": "stop"}]), frames.finish(), frames.done()),
            {},
            id="an index that is none",
        ),
        pytest.param(
            ended(frames.chunk([{"index": 0, "delta": {}, "finish_reason": ["stop"]}]), frames.done()),
            {},
            id="a finish_reason that is no string",
        ),
        pytest.param(frames.body("a", finish_reason="content_filter"), {"stream": False}, id="a whole one, filtered"),
        pytest.param(frames.body("a"), {"stream": False, "n": 2}, id="a whole one without a choice"),
        pytest.param(frames.error_body(), {"stream": False}, id="an error in the place of a whole one"),
        pytest.param(frames.body("a")[:-1], {"stream": False}, id="half of a whole one"),
    ],
)
async def test_what_is_not_whole_is_not_kept(data: bytes, fields: Mapping[str, Any]) -> None:
    plugin = Cache()
    ran = await run(plugin, answer=data, **fields)
    assert (True, 0) == (ran.sent is not None, len(plugin._entries))
    assert [] == ran.raised
    assert not await is_kept(plugin, **fields)


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "function_call"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_what_is_whole_is_kept(reason: str, stream: bool) -> None:
    plugin = Cache()
    data = ended(frames.finish(reason), frames.done()) if stream else frames.body("a", finish_reason=reason)
    first = await run(plugin, stream=stream, answer=data)
    second = await run(plugin, stream=stream)
    assert (None, first.reply.data) == (second.sent, second.reply.data)


async def test_without_the_last_event() -> None:
    """Some servers never send [DONE]; the reply is whole when each choice is finished."""
    plugin = Cache()
    await run(plugin, n=2, answer=ended(*TWO, frames.finish(index=1), frames.finish()))
    assert await is_kept(plugin, n=2)


@pytest.mark.parametrize("whole", [False, True], ids=["streamed", "whole"])
@pytest.mark.parametrize("on_violation", ["finish", "error"])
async def test_what_moderation_stops_is_not_kept(on_violation: Any, whole: bool) -> None:
    """The upstream had said it whole."""
    cache = Cache()
    for _ in range(2):
        moderation = Moderation(moderators=(Lexicon(words=("forbidden",)),), on_violation=on_violation)
        ran = await run(cache, before=[moderation], stream=not whole, answer=["It is for", "bidden", " here"])
        assert ran.sent is not None
        assert "filtered" == ran.exchange.outcome.kind
        assert ran.exchange[STOPPED_BY] == ("lexicon", "lexicon")
    assert 0 == len(cache._entries)


class _Stops(Plugin):
    """Ends the reply with an outcome, when it has come whole."""

    kind: str = "exhausted"

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        kind = self.kind

        class Ending(Wrapping):
            def end(self, outcome: Outcome) -> None:
                self.sink.end(Outcome(kind, None if kind != "unavailable" else upstream_incomplete()))  # type: ignore[arg-type]

        return Ending(sink)


@pytest.mark.parametrize(
    "kind", ["filtered", "exhausted", "unavailable", "upstream_error", "client_gone", "drained", "internal_error"]
)
async def test_what_the_client_did_not_get_whole_is_not_kept(kind: str) -> None:
    """An earlier plugin, or the client, has the last word on how it ended."""
    cache = Cache()
    ran = await run(cache, before=[_Stops(kind=kind)])
    assert kind == ran.exchange.outcome.kind
    assert 0 == len(cache._entries)
    assert cache._recorder not in ran.exchange  # nor held on to


async def test_an_end_that_comes_later_is_waited_for() -> None:
    cache = Cache()
    await run(cache, before=[EndsLater()])
    assert await is_kept(cache, before=[EndsLater()])


@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_a_client_that_leaves_in_the_middle(after: int) -> None:
    """Of what it was told nothing is kept, and nothing held."""
    plugin, kept, body = Cache(shared_by="everyone"), Kept(), HandBody()
    ex = exchange()
    assert await plugin.on_request(ex) is None
    ex.asked = True
    StreamDelivery(ex, plugin.on_stream(ex, kept), body).start()
    body.say(*frames.stream(["a", "b"])[:after])
    ex.outcome = Outcome("client_gone")
    ex.stop(ex.outcome)
    assert ex.outcome is await kept.ended()
    await plugin.on_end(ex)
    assert (0, after) == (len(plugin._entries), len(kept.chunks))
    assert Cache()._room.left == plugin._room.left


async def test_what_a_later_plugin_answers_is_not_kept() -> None:
    """It is asked again, and may say something else."""
    cache, behind = Cache(), Answers()
    ran = await run(behind, before=[cache])
    assert ("cached", 0) == (ran.reply.text, len(cache._entries))


async def test_a_refusal_is_not_kept() -> None:
    class Refuses(Plugin):
        async def on_request(self, ex: Exchange) -> Reply | None:
            raise Reject("No.", code="no")

    cache = Cache()
    ran = await run(Refuses(), before=[cache])
    assert (400, 0) == (ran.reply.status, len(cache._entries))


async def test_what_is_no_stream_any_more_is_not_kept() -> None:
    """A plugin behind the cache has put something into it that is no event."""

    class Scribbles(Plugin):
        def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
            sink.feed(Chunk.body(b"scribble"))
            return sink

    cache = Cache()
    assert (await run(Scribbles(), before=[cache])).reply.data.startswith(b"scribble")
    assert 0 == len(cache._entries)


# Bounds


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_long_reply_is_not_kept(stream: bool) -> None:
    """It passes all the same."""
    plugin = Cache(max_reply_kb=1)
    ran = await run(plugin, stream=stream, answer=["x" * 100] * 11)
    assert (1100, 0) == (len(ran.reply.text), len(plugin._entries))


def test_what_is_given_up_is_let_go() -> None:
    """While a reply is too long already, nothing of it is held."""
    kept = Kept()
    recorder = Recorder(kept, Room(10_000), max_bytes=1000, choices=1, streamed=True)
    for number in range(5):
        recorder.feed(Chunk.event({"choices": [], "x": "y" * 300}))
        assert len(recorder._parts) == (number + 1 if number < 3 else 0)
    recorder.end(Outcome("completed"))
    assert (None, 5) == (recorder.said(), len(kept.chunks))


def test_all_that_is_remembered_has_its_bound() -> None:
    """One that finds no room is passed on and given up, and what it had taken is free at once; the others are not touched."""
    chunk = Chunk.event({"choices": []})
    room = Room(3 * (chunk.size + CHUNK_BYTES))
    first, second, third = (Recorder(Kept(), room, max_bytes=1000, choices=1, streamed=True) for _ in range(3))
    for recorder in (first, second, second, second, third):
        recorder.feed(chunk)
    assert [1, 0, 1] == [len(recorder._parts) for recorder in (first, second, third)]
    first.feed(chunk)
    assert 0 == room.left
    for recorder in (first, second, third, third):
        recorder.release()
    assert 3 * (chunk.size + CHUNK_BYTES) == room.left


@pytest.mark.parametrize("answer", [["well"], frames.text("cut"), ["x" * 100] * 11], ids=["well", "cut", "long"])
async def test_room_is_given_back(answer: Any) -> None:
    """However a request ends."""
    plugin = Cache(max_reply_kb=1)
    before = plugin._room.left
    await run(plugin, answer=answer)
    assert before == plugin._room.left


def test_nothing_is_copied() -> None:
    """What is held are the bytes that have come, and of what is known not to have been parsed the chunk."""
    recorder = Recorder(Kept(), Room(10_000), max_bytes=1000, choices=1, streamed=True)
    known, other = Chunk(frames.text("a"), frames.text("a")[6:-2]), Chunk.event({"choices": []})
    known.said = (0, "a")
    recorder.feed(known)
    recorder.feed(other)
    assert [known, other.raw] == recorder._parts
    assert recorder._parts[1] is other.raw


def entry(entries: Entries, key: bytes, size: int = 0) -> None:
    entries.keep(key, b"x" * size, b"", hides_usage=False)


def test_the_least_recently_asked_goes_first() -> None:
    """By bytes: those of the replies, and a constant for each."""
    entries = Entries(3 * (OVERHEAD_BYTES + 100), 60, Clock())
    for key in (b"a", b"b", b"c"):
        entry(entries, key, 100)
    assert entries.find(b"a") is not None
    entry(entries, b"d", 50)
    assert [True, False, True, True] == [entries.find(key) is not None for key in (b"a", b"b", b"c", b"d")]
    entry(entries, b"e", OVERHEAD_BYTES)
    assert [b"e", b"d"] == [key for key in (b"e", b"d", b"c", b"a") if entries.find(key) is not None]
    assert 3 * OVERHEAD_BYTES + 50 == entries.size


def test_time() -> None:
    """A reply is good for so long, and asking for it makes it no younger; keeping it anew does."""
    clock = Clock()
    entries = Entries(2**20, 60, clock)
    entry(entries, b"a")
    clock.now += 59.5
    assert (found := entries.find(b"a")) is not None
    assert 59.5 == found[1]
    clock.now += 0.5
    assert entries.find(b"a") is None
    assert 0 == len(entries) == entries.size
    entry(entries, b"a")
    clock.now += 59
    entry(entries, b"a", 1)
    clock.now += 59
    assert entries.find(b"a") is not None
    assert OVERHEAD_BYTES + 1 == entries.size


async def test_after_its_time_it_is_asked_anew() -> None:
    plugin, clock = clocked(ttl_s=60)
    await run(plugin)
    clock.now += 60
    ran = await run(plugin, answer=["anew"])
    assert ("anew", "relay; fwd=miss") == (ran.reply.text, status(ran))
    clock.now += 59
    assert "anew" == (await run(plugin)).reply.text


# What a client asks for


@pytest.mark.parametrize(
    ("control", "asked", "kept"),
    [
        ("no-cache", True, "second"),
        ("No-Cache", True, "second"),
        ("no-store", True, "first"),
        ("no-transform, no-store", True, "first"),
        ("max-age=0", True, "second"),
        ("max-age=10", True, "second"),
        ("max-age=11", False, "first"),
        ('max-age="11"', False, "first"),
        ("max-age=99999999999999999999", False, "first"),
        ("max-age", True, "second"),
        ("max-age=²", True, "second"),
        ("max-age=11, max-age=1", True, "second"),
        ("only-if-cached", False, "first"),
        ("", False, "first"),
        (",=,;", False, "first"),
    ],
)
async def test_cache_control(control: str, asked: bool, kept: str) -> None:
    """RFC 9111, 5.2.1: a reply that is ten seconds old."""
    plugin, clock = clocked()
    await run(plugin, answer=["first"])
    clock.now += 10
    ran = await run(plugin, answer=["second"], headers={"cache-control": control})
    assert asked is (ran.sent is not None)
    assert "second" if asked else "first" == ran.reply.text
    assert status(ran).startswith("relay; fwd=request" if asked else "relay; hit")
    assert kept == (await run(plugin)).reply.text


async def test_no_store_keeps_nothing() -> None:
    """Nor is the reply remembered while it comes."""
    plugin = Cache()
    ran = await run(plugin, headers={"Cache-Control": "no-store"})
    assert ("relay; fwd=miss", 0) == (status(ran), len(plugin._entries))
    assert plugin._recorder not in ran.exchange


def test_several_headers_are_one() -> None:
    assert directives.Directives(False, 5.0) == directives.read(["max-age=7, no-store", "max-age=5"])


# The way back


async def test_moderated_by_the_words_of_the_day() -> None:
    """What was kept is what the upstream said, and it is judged when it is given again."""
    cache, answer = Cache(), ["It is for", "bidden", " here"]
    assert "It is forbidden here" == (await run(cache, before=[_moderation("other")], answer=answer)).reply.text
    stopped = await run(cache, before=[_moderation("forbidden")], answer=answer)
    assert (None, "filtered") == (stopped.sent, stopped.exchange.outcome.kind)
    upstream = await run(Cache(), before=[_moderation("forbidden")], answer=answer)
    assert upstream.reply.data == stopped.reply.data
    assert "bidden" not in stopped.reply.text
    assert (await run(cache, before=[_moderation("other")])).sent is not None  # nor is it kept any longer


def _moderation(word: str) -> Moderation:
    return Moderation(moderators=(Lexicon(words=(word,)),))


async def test_a_reply_of_many_events_gives_others_their_turn() -> None:
    """So many at once as an upstream says in one read, and none while the client does not read."""
    cache, fed = Cache(), list[int]()
    await run(cache, answer=["x"] * 500)

    class Notes(Plugin):
        """How many have come in each turn of the loop."""

        def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
            class Noting(Wrapping):
                def feed(self, chunk: Chunk) -> None:
                    if not fed or fed[-1] == 0:
                        fed.append(0)
                        ex.loop.call_soon(fed.append, 0)
                    fed[-1] += 1
                    self.sink.feed(chunk)

            return Noting(sink)

    assert 500 == len((await run(cache, before=[Notes()])).reply.text)
    turns = [count for count in fed if count]
    assert (502, AT_ONCE) == (sum(turns), max(turns))


# Byte for byte

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(['"', "\\", "\ud83d", "a" * 300, "\r\n"])
LINES = st.sampled_from([b"", b": ping\n\n", b": ping\n", b"id: 7\n", b"event: message\n", b"retry: 9\n", b"\n\n"])
NEWLINES = st.sampled_from([b"\n", b"\r\n", b"\r"])
DONES = st.sampled_from([frames.done(), b"data:[DONE]\n\n", b": x\n\ndata: [DONE]\r\n\r\n", b""])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A stream that ends well, as servers write them, and worse."""
    newline = draw(NEWLINES)
    events = frames.stream(draw(st.lists(TEXTS, max_size=8)))[:-1]
    if draw(st.booleans()):
        events.append(frames.usage())
    told = b"".join(draw(LINES) + event for event in events)
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + told.replace(b"\n", newline) + draw(DONES)


async def told(plugin: Cache, ex: Exchange, data: bytes, cuts: list[int] | None, *, whole: bool = False) -> bytes:
    """All that the client gets of an upstream's reply, with its last event."""
    kept, body = Kept(), HandBody()
    assert await plugin.on_request(ex) is None
    ex.asked = True
    (WholeDelivery if whole else StreamDelivery)(ex, plugin.on_stream(ex, kept), body).start()
    body.say(*frames.cut(data, cuts))
    body.eof()
    ex.outcome = await kept.ended()
    await plugin.on_end(ex)
    return kept.raw + ex.outcome.done


async def again(plugin: Cache, ex: Exchange) -> bytes:
    reply = await plugin.on_request(ex)
    assert reply is not None
    return b"".join(chunk.raw for chunk in reply.chunks) + reply.done


@given(streams(), st.lists(st.integers(0, 3000), max_size=20) | st.sampled_from([None, []]))
async def test_a_replay_is_the_first_reply(data: bytes, cuts: list[int] | None) -> None:
    """Whole, byte by byte or cut at random; with whatever stands between the events."""
    plugin = Cache(shared_by="everyone")
    assert await told(plugin, exchange(), data, cuts) == await again(plugin, exchange())


@given(TEXTS, st.lists(st.integers(0, 3000), max_size=20) | st.sampled_from([None, []]))
async def test_a_whole_replay_is_the_first_reply(text: str, cuts: list[int] | None) -> None:
    plugin = Cache(shared_by="everyone")
    data = frames.body(text)
    first = await told(plugin, exchange(stream=False), data, cuts, whole=True)
    assert first == await again(plugin, exchange(stream=False))
    assert first.startswith(data)


async def test_a_long_stream_is_taken_apart_all_the_same() -> None:
    """In a thread."""
    plugin = Cache(shared_by="everyone")
    data = b"".join(frames.stream(["x" * 1000] * 100))
    assert data == await told(plugin, exchange(), data, [])
    assert data == await again(plugin, exchange())


async def test_a_frame_of_usage_that_was_hidden_stays_hidden() -> None:
    """The exchange is told, so that meters see it and the client does not."""
    plugin = Cache(shared_by="everyone")
    for hidden in (True, False):
        ex, user = exchange(user=str(hidden)), {"user": str(hidden)}
        ex.hides_usage = hidden
        await told(plugin, ex, b"".join(frames.stream(["a"], tokens=(3, 4))), [])
        later = exchange(**user)
        assert b'"usage"' in await again(plugin, later)
        assert hidden is later.hides_usage


# The configuration


def configured(**table: object) -> Cache:
    return build(Cache, table, "plugins[0]", context=Context(folder=Path(), environ={}))


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"ttl_s": 0}, "ttl_s"),
        ({"max_mb": 0}, "max_mb"),
        ({"max_reply_kb": 0}, "max_reply_kb"),
        ({"max_mb": 1, "max_reply_kb": 1024}, "max_mb = 1 has no room for a reply of max_reply_kb = 1024"),
        ({"shared_by": "all"}, "shared_by"),
        ({"ttl": 5}, "did you mean 'ttl_s'"),
    ],
)
def test_what_stops_the_start(table: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        configured(**table)


def test_it_stands_behind_moderation() -> None:
    """Before it, it would give again what nobody looks at."""
    cache = ("cache", configured(shared_by="everyone"))
    moderation = ("moderation", _moderation("forbidden"))
    Chain([moderation, cache])
    with pytest.raises(ConfigError, match="plugin 'cache' has to stand behind 'moderation': move it down"):
        Chain([cache, moderation])


def test_it_needs_to_know_who_asks() -> None:
    """Unless everyone is told the same; and then it still stands behind who lets them in."""
    with pytest.raises(ConfigError, match="plugin 'cache' needs 'caller'"):
        Chain([("cache", configured())])
    Chain([("cache", configured(shared_by="everyone"))])
    with pytest.raises(ConfigError, match="plugin 'cache' has to stand behind 'auth': move it down"):
        Chain([("cache", configured(shared_by="everyone")), ("auth", named("a"))])


async def test_what_is_said_shows_nowhere() -> None:
    """Not in the repr of anything that holds it."""
    plugin = Cache(shared_by="everyone")
    await run(plugin, answer=["secret"])
    [found] = [plugin._entries.find(key) for key in plugin._entries._kept]
    assert found is not None
    assert b"secret" in found[0].data
    assert "secret" not in f"{plugin!r} {found!r}"


# What stands around it


class Tenant(Plugin):
    """Tells the upstream whose request it is."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex.upstream_headers["x-tenant"] = ex.headers["x-tenant"]
        ex.upstream_headers["traceparent"] = f"00-{ex.headers['x-trace']}"
        return None


async def test_what_the_upstream_is_told_besides() -> None:
    """Another header for the upstream may be another reply; another trace is none."""
    plugin = Cache()

    async def asked(tenant: str, trace: str) -> Ran:
        return await run(plugin, before=[Tenant()], headers={"x-tenant": tenant, "x-trace": trace}, answer=[tenant])

    assert [(await asked(*who)).reply.text for who in (("a", "1"), ("b", "2"), ("a", "3"))] == ["a", "b", "a"]
    assert (await asked("b", "4")).sent is None


class Changes(Plugin):
    """Lets a reply pass until it does not."""

    def __post_init__(self) -> None:
        self.stops = False

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        if self.stops:
            ex.loop.call_soon(ex.stop, Outcome("filtered"))
        return sink


async def test_what_is_stopped_when_it_is_given_again_is_forgotten() -> None:
    """The upstream may say something else the next time."""
    plugin, changes = Cache(), Changes()
    await run(plugin, before=[changes], answer=["x"] * 500)
    changes.stops = True
    stopped = await run(plugin, before=[changes])
    assert (stopped.sent, stopped.exchange.outcome.kind) == (None, "filtered")
    changes.stops = False
    assert (await run(plugin, before=[changes])).sent is not None


async def test_chunks_are_known_as_an_upstreams_are() -> None:
    """So that sinks that hold text treat them in the same way."""
    seen: list[object] = []

    class Looks(Plugin):
        def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
            class Looking(Wrapping):
                def feed(self, chunk: Chunk) -> None:
                    seen.append(chunk.said)
                    super().feed(chunk)

            return Looking(sink)

    plugin = Cache()
    for _ in range(2):
        await run(plugin, before=[Looks()], answer=["Hel", "lo"], cuts=None)
    assert (0, "Hel") in seen[: len(seen) // 2]
    assert seen[len(seen) // 2 :].count((0, "Hel")) == 1
