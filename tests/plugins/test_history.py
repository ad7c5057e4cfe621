"""The oldest turns go, the upstream's count corrects ours, and nothing that a client or an upstream says does harm."""

import asyncio
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery import StreamDelivery, WholeDelivery
from relay.exchange import Exchange, Outcome
from relay.options import ConfigError, Context, build
from relay.pure.cost import MEDIA_TOKENS, MESSAGE_TOKENS
from relay.pure.openai import Chunk, dump
from relay.pure.request import ChatRequest
from relay.pure.tokens import ASKED_EVERY, estimate
from relay.testing import frames
from relay.testing.reply import HandBody, Kept, Lent, exchange
from relay_plugins.history import HEADER, History
from relay_plugins.history.tokenizer import PIECE_CHARS, Tokenizer

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
TRIMMED = "relay_history_trimmed_messages_total"

Message = dict[str, Any]


def talk(*contents: Any) -> list[Message]:
    """User and assistant in turns; the last message is a user's."""
    roles = ["assistant", "user"]
    return [{"role": roles[(len(contents) - position) % 2], "content": each} for position, each in enumerate(contents)]


async def sent(plugin: History, messages: list[Message], lent: Lent | None = None, **fields: object) -> Exchange:
    """The exchange after the plugin has seen its request."""
    ex = exchange(messages=messages, **fields)
    async with plugin.lifespan((lent or Lent()).services):
        assert await plugin.on_request(ex) is None
    return ex


async def left(plugin: History, *contents: Any) -> list[Any]:
    """What is left of a talk."""
    return [message["content"] for message in (await sent(plugin, talk(*contents))).request.messages]


# Trimming


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"max_chars": 6}, ["aa", "bb", "cc"], id="characters"),
        pytest.param({"max_chars": 5}, ["cc"], id="a character less"),
        pytest.param({"max_chars": 1}, ["cc"], id="the newest turn stays"),
        pytest.param({"max_turns": 2}, ["aa", "bb", "cc"], id="turns"),
        pytest.param({"max_turns": 1}, ["cc"], id="a turn less"),
        pytest.param({"max_tokens": 14}, ["aa", "bb", "cc"], id="tokens: 3 × (4 + 2 × 0.24)"),
        pytest.param({"max_tokens": 13}, ["cc"], id="a token less"),
        pytest.param({"max_tokens": 14, "count": "exact"}, ["cc"], id="exactly 3 × (4 + 1)"),
        pytest.param({"max_tokens": 15, "count": "exact"}, ["aa", "bb", "cc"], id="a token more"),
        pytest.param({"max_tokens": 14, "max_chars": 6, "max_turns": 2}, ["aa", "bb", "cc"], id="all"),
        pytest.param({"max_tokens": 14, "max_chars": 6, "max_turns": 1}, ["cc"], id="all, turns the strictest"),
        pytest.param({"max_tokens": 14, "max_chars": 5, "max_turns": 2}, ["cc"], id="all, characters the strictest"),
        pytest.param({"max_tokens": 13, "max_chars": 6, "max_turns": 2}, ["cc"], id="all, tokens the strictest"),
    ],
)
async def test_limits(options: dict[str, Any], expected: list[str]) -> None:
    """All limits that are set hold."""
    assert expected == await left(History(**options), "aa", "bb", "cc")


async def test_what_was_dropped_is_told() -> None:
    """The reply's header has the number of messages, and the metric their sum."""
    lent, plugin = Lent(), History(max_turns=2)
    ex = await sent(plugin, talk(*"abcdefg"), lent)
    assert "4" == ex.reply_headers[HEADER]
    assert list("efg") == [message["content"] for message in ex.request.messages]
    assert 4 == await lent.count(TRIMMED)
    await sent(plugin, talk(*"abcde"), lent)
    assert 6 == await lent.count(TRIMMED)


async def test_what_fits_is_not_touched() -> None:
    """Nothing dropped, nothing told, and the body is the very bytes that came."""
    lent = Lent()
    ex = await sent(History(max_turns=9, max_tokens=999), talk(*"abc"), lent)
    assert HEADER not in ex.reply_headers
    assert 0 == await lent.count(TRIMMED)
    assert json.dumps({**json.loads(ex.request.encode())}).encode() == ex.request.encode()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        pytest.param({"max_tokens": MEDIA_TOKENS + 2 * (MESSAGE_TOKENS + 1)}, 2, id="as many tokens as a large one"),
        pytest.param({"max_tokens": MEDIA_TOKENS + 2 * MESSAGE_TOKENS}, 1, id="too few"),
        pytest.param({"max_chars": 2}, 2, id="no characters"),
    ],
)
async def test_an_image_has_a_price(options: dict[str, int], kept: int) -> None:
    """An image costs what a large one does, in tokens, and no characters."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}, {"role": "user", "content": "b"}]
    assert kept == len((await sent(History(**options), messages)).request.messages)


async def test_without_a_user_there_is_nothing_to_drop() -> None:
    """A request that names no user is one turn, and goes on whole."""
    messages = [{"role": "x", "content": "long"}, {"content": "er"}]
    assert messages == (await sent(History(max_tokens=1, max_chars=1, max_turns=1), messages)).request.messages


# Large bodies


@pytest.mark.parametrize("options", [{"max_tokens": 1000}, {"max_tokens": 1000, "count": "exact"}, {"max_turns": 3}])
async def test_a_large_body_is_read_in_a_thread(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other streams get their turn; a small one is not worth it."""
    threads = []
    plugin, trim = History(**options), History._trim

    def noting(self: History, *args: Any) -> Any:
        threads.append(threading.current_thread())
        return trim(self, *args)

    monkeypatch.setattr(History, "_trim", noting)
    ex = await sent(plugin, talk("x" * 100_000, "y", "z"))
    assert ["z"] == [each["content"] for each in ex.request.messages] or "max_turns" in options
    await sent(plugin, talk("x" * 10_000, "y", "z"))
    assert [False, True] == [thread is threading.main_thread() for thread in threads]


async def test_a_client_that_leaves_meanwhile() -> None:
    """A cancelled request waits for no thread."""
    plugin = History(max_tokens=1000)
    ex = exchange(messages=talk("x" * 1_000_000, "y", "z"))
    async with plugin.lifespan(Lent().services):
        task = asyncio.ensure_future(plugin.on_request(ex))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert HEADER not in ex.reply_headers
    assert 3 == len(ex.request.messages)


# Learning from usage

PROSE = "The quick brown fox jumps over the lazy dog. " * 40
ESTIMATED = MESSAGE_TOKENS + estimate(PROSE)


async def answer(plugin: History, ex: Exchange, *parts: bytes) -> Kept:
    """Send a reply through the plugin, streamed if there are several parts."""
    body, kept = HandBody(), Kept()
    sink = plugin.on_stream(ex, kept)
    if len(parts) > 1:
        StreamDelivery(ex, sink, body).start()
    else:
        WholeDelivery(ex, sink, body).start()
    body.say(*parts)
    body.eof()
    await kept.ended()
    assert b"".join(parts).removesuffix(frames.done()) == kept.raw
    return kept


async def learned(
    *parts: bytes, messages: list[Message] | None = None, max_tokens: int = 9999, **fields: object
) -> float:
    """The factor after one prompt and this reply."""
    plugin = History(max_tokens=max_tokens)
    ex = await sent(plugin, messages or talk(PROSE), **fields)
    await answer(plugin, ex, *parts)
    return plugin._calibration.factor("gpt-4")


def reported(usage: object, **more: object) -> bytes:
    return frames.chunk([], extra={"usage": usage, **more})


WORDS = [frames.role(), *(frames.text(f"word {number} ") for number in range(9)), frames.finish()]
TWICE = round(2 * ESTIMATED)


async def test_a_stream_may_tell() -> None:
    """The usage at its end corrects the estimate."""
    assert 2 == pytest.approx(await learned(*WORDS, frames.usage(TWICE, 9), frames.done()), rel=0.01)
    assert 1 == await learned(*WORDS, frames.done())


async def test_a_stream_that_nobody_asked_is_not_looked_at() -> None:
    """A model that is known is asked now and then; in between the way back costs nothing."""
    plugin, asked = History(max_tokens=9999), []
    plugin._calibration.learn("gpt-4", 1000, 1000)
    for _ in range(2 * ASKED_EVERY):
        kept, ex = Kept(), await sent(plugin, talk(PROSE))
        assert ex.needs_usage is (plugin.on_stream(ex, kept) is not kept)
        asked.append(ex.needs_usage)
    assert 2 == sum(asked)


@pytest.mark.parametrize("count", ["estimate", "exact"])
@pytest.mark.parametrize(
    ("messages", "looked"),
    [
        (talk("Hi"), False),
        (talk("Hi") * 300, True),
        (talk(PROSE * 2), True),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b"}}]}], True),
        ([{"role": "user", "content": "Hi", "name": "Ann"}], True),
    ],
    ids=["little", "many messages", "long", "an image", "more than text"],
)
async def test_what_surely_fits_is_not_looked_through(
    messages: list[Message], looked: bool, count: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short conversations of nothing but text: most."""
    plugin, seen = History(max_tokens=500, count=count), []
    trimmed = plugin._trim

    def trim(messages: Any, factor: float) -> Any:
        seen.append(messages)
        return trimmed(messages, factor)

    monkeypatch.setattr(plugin, "_trim", trim)
    plugin._calibration.learn("gpt-4", 1000, 1000)
    await sent(plugin, messages)
    assert looked is bool(seen)


@given(st.lists(st.text("a你😀", max_size=30), min_size=1, max_size=6), st.integers(1, 60), st.integers(1, 120))
def test_what_fits_is_what_would_be_kept(texts: list[str], max_tokens: int, max_chars: int) -> None:
    """A conversation of nothing but texts is summed up as a whole, and comes to what its messages do one by one."""
    plugin = History(max_tokens=max_tokens, max_chars=max_chars)
    request = ChatRequest(dump({"messages": talk(*texts)}))
    summed, looked = plugin._fitting(request, 1.0), plugin._trim(request.messages, 1.0)
    if summed is not None:
        assert looked.kept == summed.kept
        assert pytest.approx(looked.cost) == summed.cost
    else:
        tokens, characters, _ = looked.cost
        assert len(looked.kept) < len(texts) or tokens > max_tokens or characters > max_chars


async def test_a_whole_reply_tells() -> None:
    """A reply that is not streamed always has its usage."""
    assert 2 == pytest.approx(await learned(frames.body("Hi", tokens=(TWICE, 9)), stream=False), rel=0.01)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(
            frames.data(b'{"choices":null,"usage": {"prompt_tokens": %d}}' % TWICE), id="null choices, spaces"
        ),
        pytest.param(
            frames.chunk([{"delta": {"content": "."}, "index": 0}], extra={"usage": {"prompt_tokens": TWICE}}),
            id="beside text",
        ),
        pytest.param(reported({"prompt_tokens": 9}) + reported({"prompt_tokens": TWICE}), id="the last counts"),
        pytest.param(
            reported({"prompt_tokens": TWICE}) + reported(None) + frames.data(b'{"choices":[],"usage" : null}'),
            id="null after it",
        ),
    ],
)
async def test_servers_differ(frame: bytes) -> None:
    """Wherever in a stream the usage stands, it is found."""
    assert 2 == pytest.approx(await learned(*WORDS, frame, frames.done()), rel=0.01)


@pytest.mark.parametrize(
    "usage",
    [None, 5, "5", [], {}, {"prompt_tokens": None}, {"prompt_tokens": True}, {"prompt_tokens": -5}, {"prompt_tokens": "9"},
     {"prompt_tokens": 1e9}, {"prompt_tokens": 10**60}, {"completion_tokens": 999}, {"prompt_tokens": {"prompt_tokens": 9}}],
)  # fmt: skip
async def test_usage_is_not_trusted(usage: object) -> None:
    """What is no number of tokens teaches nothing and harms nobody."""
    assert 1 == await learned(*WORDS, reported(usage), frames.done())


async def test_what_a_model_says_of_usage_is_no_usage() -> None:
    """Text about usage is text, in a string or in a field of an unknown name."""
    word = f'"usage":{{"prompt_tokens":{TWICE}}}'
    assert 1 == await learned(frames.role(), frames.text(word), frames.delta({"x": {"usage": {"prompt_tokens": 999}}}),
                              frames.finish(), frames.done())  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        pytest.param([{"role": "user", "content": [{"type": "text", "text": PROSE}, IMAGE]}], {}, id="an image"),
        pytest.param(talk(PROSE), {"tools": [{"type": "function", "function": {"name": "f"}}]}, id="tools"),
        pytest.param(talk(PROSE), {"nobody_has_heard_of_it": "x"}, id="an unknown field"),
        pytest.param(talk("Hi"), {}, id="a short prompt"),
    ],
)
async def test_what_was_not_estimated_is_not_compared(messages: list[Message], fields: dict[str, object]) -> None:
    """The upstream counts all that a model reads; where that is more than we counted, nothing is learned."""
    assert 1 == await learned(*WORDS, frames.usage(9999, 9), frames.done(), messages=messages, **fields)


async def test_an_image_that_was_dropped_is_not_in_the_way() -> None:
    """What is compared is what was sent."""
    messages = [{"role": "user", "content": [IMAGE]}, {"role": "user", "content": PROSE}]
    factor = await learned(*WORDS, frames.usage(TWICE, 9), frames.done(), messages=messages, max_tokens=600)
    assert 2 == pytest.approx(factor, rel=0.01)


async def test_a_later_plugin_changes_the_messages() -> None:
    """Then nobody knows what was counted, and the reply is not even looked at."""
    plugin, kept = History(max_tokens=9999), Kept()
    ex = await sent(plugin, talk(PROSE))
    ex.request.set("messages", ex.request.messages * 2)
    assert kept is plugin.on_stream(ex, kept)


@pytest.mark.parametrize("options", [{"max_turns": 9}, {"max_chars": 9999}, {"max_tokens": 9999, "count": "exact"}])
async def test_who_does_not_estimate_does_not_look(options: dict[str, Any]) -> None:
    """Without an estimate there is nothing to correct: the way back costs nothing."""
    plugin, kept = History(**options), Kept()
    assert kept is plugin.on_stream(await sent(plugin, talk(PROSE)), kept)


async def test_what_was_learned_decides_what_stays() -> None:
    """Twice the tokens for the same text is half the text that fits, for that model alone."""
    plugin = History(max_tokens=round(3.5 * ESTIMATED))
    long = talk(PROSE, PROSE, PROSE)
    ex = await sent(plugin, long)
    assert 3 == len(ex.request.messages)
    await answer(plugin, ex, *WORDS, frames.usage(3 * TWICE, 9), frames.done())
    assert 1 == len((await sent(plugin, long)).request.messages)
    assert 3 == len((await sent(plugin, long, model="gpt-5")).request.messages)
    for _ in range(
        30 * ASKED_EVERY
    ):  # what was trimmed is compared too, so a factor that has become wrong mends itself
        ex = await sent(plugin, long)
        if ex.needs_usage:
            await answer(plugin, ex, *WORDS, frames.usage(round(ESTIMATED), 9), frames.done())
    assert 3 == len((await sent(plugin, long)).request.messages)


@pytest.mark.parametrize("outcome", [Outcome("completed"), Outcome("client_gone"), Outcome("upstream_error")])
async def test_the_end_is_passed_on(outcome: Outcome) -> None:
    """Once, as it came, whatever was told before."""
    plugin = History(max_tokens=9999)
    for told in ([], [Chunk.event({"usage": {"prompt_tokens": 9}})], [Chunk(b"x", b'{"usage":{')]):
        kept = Kept()
        sink = plugin.on_stream(await sent(plugin, talk(PROSE)), kept)
        for chunk in told:
            sink.feed(chunk)
        sink.end(outcome)
        assert told == kept.chunks
        assert [outcome] == kept.ends


async def test_text_is_not_parsed() -> None:
    """Of a stream only what may hold a usage is read."""
    plugin, kept = History(max_tokens=9999), Kept()
    sink = plugin.on_stream(await sent(plugin, talk(PROSE)), kept)

    class Unread(Chunk):
        @property
        def json(self) -> Any:
            raise AssertionError("it was parsed")

    for data in (b'{"choices":[]}', b'{"usage":null}', b'{"x":"usage"}', b'{"usage": null}', b'{"a":"\\"usage\\":{"}'):
        sink.feed(Unread(data, data))
    said = Unread(b"data", b'{"usage":{}}')
    said.said = (0, "known")
    sink.feed(said)
    sink.end(Outcome("completed"))
    assert 6 == len(kept.chunks)


# Counting

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(["<|endoftext|>", "The quick brown fox"])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer("o200k_base")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("hello world", 2),
        ("你好，世界", 3),
        ("<|endoftext|>", 7),
        ("a" * 8, 1),
        ("\ud83d", 1),
        ("x\ud83dy", 3),
    ],
)
def test_exact_counts(tokenizer: Tokenizer, text: str, tokens: int) -> None:
    """The tokens of o200k; special tokens are text, and half a pair is a question mark."""
    assert tokens == tokenizer.counter(99)(text)


@given(st.lists(TEXTS, max_size=8), st.integers(0, 100))
def test_counting_stops_at_the_limit(tokenizer: Tokenizer, texts: list[str], limit: int) -> None:
    """Up to the limit every count is exact; beyond it nothing more is counted."""
    count, exact = tokenizer.counter(limit), tokenizer.counter(10**9)
    total = 0
    for text in texts:
        assert count(text) == (exact(text) if total <= limit else 0)
        total += exact(text)


def test_a_long_text_is_not_counted_whole(tokenizer: Tokenizer) -> None:
    """It is counted in pieces, of which no more are looked at than the limit needs."""
    text = "word " * 1_000_000
    assert PIECE_CHARS / 5 - 1 <= tokenizer.counter(100)(text) <= PIECE_CHARS / 5 + 1
    assert 1_000_001 == pytest.approx(tokenizer.counter(10**9)(text), abs=len(text) / PIECE_CHARS)


@pytest.mark.parametrize("encoding", ["o200k_base", "cl100k_base", "llama3", "qwen3"])
async def test_encodings(encoding: Any) -> None:
    """Every encoding that can be chosen is there."""
    plugin = History(max_tokens=24, count="exact", encoding=encoding)
    assert ["hello world", "b", "c"] == await left(plugin, "one two three four five", "a", "hello world", "b", "c")


# The configuration


def configured(**table: object) -> History:
    return build(History, table, "plugins[0]", context=Context(folder=Path(), environ={}))


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        pytest.param({}, "set max_tokens, max_chars or max_turns", id="nothing"),
        pytest.param({"count": "estimate"}, "set max_tokens, max_chars or max_turns", id="no limit"),
        pytest.param({"max_turns": 0}, "max_turns", id="zero"),
        pytest.param({"max_tokens": -1}, "max_tokens", id="negative"),
        pytest.param({"max_tokens": True}, "max_tokens", id="true"),
        pytest.param({"max_messages": 5}, "unknown option 'max_messages'", id="unknown"),
        pytest.param(
            {"max_turns": 5, "count": "exact"}, 'count = "exact" counts tokens; set max_tokens', id="no tokens"
        ),
        pytest.param({"max_tokens": 5, "count": "guess"}, "count", id="unknown way to count"),
        pytest.param({"max_tokens": 5, "encoding": "gpt2"}, "encoding", id="unknown encoding"),
    ],
)
def test_what_stops_the_start(table: dict[str, object], problem: str) -> None:
    """A configuration that cannot be meant is refused with its key and a remedy."""
    with pytest.raises(ConfigError, match=problem):
        configured(**table)


def test_exact_counting_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start stops with the line to run."""
    monkeypatch.setitem(sys.modules, "quicktok", None)
    with pytest.raises(ConfigError) as caught:
        configured(max_tokens=5, count="exact")
    assert 'pip install "moderelay[tokens]"' in str(caught.value)
    assert configured(max_tokens=5).max_tokens == 5
