"""How many requests a key may make and have open, what it is told about it, and that nothing is kept of it for nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.chain import Chain
from relay.delivery import StreamDelivery
from relay.errors import Reject
from relay.exchange import CALLER, Exchange, Operation, Outcome, OutcomeKind
from relay.keys import API_KEY, ApiKey, Limits
from relay.limits import Here
from relay.metrics import REFUSALS
from relay.options import ConfigError, Context, build
from relay.plugin import Plugin
from relay.secret import Secret
from relay.testing import frames
from relay.testing.reply import HandBody, Kept, exchange
from relay_plugins.auth import Auth, ConfiguredKey
from relay_plugins.rate_limit import Override, RateLimit, Together, duration

HEADERS = tuple(f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset"))


class Clock:
    """Stands in for a loop's clock, and stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now


class Callers:
    """Requests through a plugin, at a time that a test chooses."""

    def __init__(self, **options: Any) -> None:
        self.plugin = RateLimit(**options)
        self.clock = Clock()

    def exchange(self, caller: str = "ann", operation: Operation = "chat") -> Exchange:
        ex = exchange(operation=operation)
        ex[CALLER] = caller
        ex.loop = self.clock  # type: ignore[assignment]
        return ex

    async def asks(self, caller: str = "ann", operation: Operation = "chat") -> Exchange:
        """A request that is let in, and open."""
        ex = self.exchange(caller, operation)
        assert await self.plugin.on_request(ex) is None
        return ex

    async def asked(self, caller: str = "ann") -> Exchange:
        """A request that is let in, and over."""
        ex = await self.asks(caller)
        await self.plugin.on_end(ex)
        return ex

    async def refused(self, caller: str = "ann") -> tuple[Reject, Exchange]:
        ex = self.exchange(caller)
        with pytest.raises(Reject) as caught:
            await self.plugin.on_request(ex)
        return caught.value, ex

    def open(self, caller: str = "ann") -> int:
        return self.here.in_flight("key", caller)

    @property
    def here(self) -> Here:
        return self.plugin._limiter.here

    @property
    def known(self) -> list[str]:
        """Of whom something is kept."""
        return [name for _, name in self.here._callers]


def told(ex: Exchange) -> tuple[str, ...]:
    return tuple(ex.reply_headers[name] for name in HEADERS)


# The rate


async def test_what_every_reply_carries() -> None:
    """The limit, what remains, and when all of it is back; whatever was asked for."""
    callers = Callers(requests_per_minute=60)
    assert ("60", "59", "1s") == told(await callers.asks())
    assert ("60", "58", "2s") == told(await callers.asks(operation="models"))
    callers.clock.now += 1
    assert ("60", "58", "2s") == told(await callers.asks())
    assert ("60", "59", "1s") == told(await callers.asks("bob"))


async def test_over_the_rate() -> None:
    """429 with a code, a wait in the header and in words, and the three headers; the wait is exact."""
    callers = Callers(requests_per_minute=6, burst=2)
    await callers.asked()
    await callers.asked()
    error, ex = await callers.refused()
    assert (429, "rate_limit_exceeded", "10") == (error.status, error.code, error.headers["Retry-After"])
    assert {
        "message": "Rate limit reached on requests per minute: limit 6, 2 at once. Try again in 10s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    } == json.loads(error.body)["error"]
    assert ("2", "0", "20s") == told(ex)
    assert "x-should-retry" not in error.headers
    callers.clock.now += 9.99
    assert "1" == (await callers.refused())[0].headers["Retry-After"]
    callers.clock.now += 0.01
    assert ("2", "0", "20s") == told(await callers.asked())


async def test_retry_after_is_never_zero() -> None:
    """Whole seconds: a part of one is one, in words it is told exactly."""
    callers = Callers(requests_per_minute=600, burst=1)
    await callers.asked()
    error, ex = await callers.refused()
    assert "1" == error.headers["Retry-After"]
    assert "Try again in 100ms." in error.message
    assert ("1", "0", "100ms") == told(ex)


async def test_a_refusal_costs_nothing() -> None:
    """However often somebody asks too early, he is let in when he was told."""
    callers = Callers(requests_per_minute=60, burst=1)
    await callers.asked()
    for _ in range(100):
        await callers.refused()
    callers.clock.now += 1
    await callers.asked()


async def test_the_defaults() -> None:
    """600 in a minute, all at once if need be, and 50 open."""
    callers = Callers()
    assert ("600", "599", "100ms") == told(await callers.asked())
    for _ in range(599):
        await callers.asked()
    assert "rate_limit_exceeded" == (await callers.refused())[0].code
    for _ in range(50):
        await callers.asks("bob")
    assert "too_many_requests_in_flight" == (await callers.refused("bob"))[0].code


# Requests in flight


async def test_too_many_in_flight() -> None:
    """429 while as many are open as may be; it costs nothing of the rate, and one that ends makes room for one."""
    callers = Callers(requests_per_minute=60, concurrent_streams=2)
    first, second = await callers.asks(), await callers.asks(operation="models")
    for _ in range(5):
        error, ex = await callers.refused()
        assert (429, "too_many_requests_in_flight", "1") == (error.status, error.code, error.headers["Retry-After"])
        assert "requests" == json.loads(error.body)["error"]["type"]
        assert error.message.startswith("Too many requests in flight: limit 2.")
        assert ("60", "58", "2s") == told(ex)
        assert 2 == callers.open()
    assert 1 == callers.open((await callers.asks("bob"))[CALLER])
    await callers.plugin.on_end(first)
    third = await callers.asks()
    assert ("60", "57", "3s") == told(third)
    await callers.refused()
    for ex in (second, third):
        await callers.plugin.on_end(ex)
    assert 0 == callers.open()


async def test_over_the_rate_takes_no_slot() -> None:
    """A request that is refused is not open."""
    callers = Callers(requests_per_minute=1, concurrent_streams=3)
    ex = await callers.asks()
    for _ in range(5):
        assert "rate_limit_exceeded" == (await callers.refused())[0].code
    assert 1 == callers.open()
    await callers.plugin.on_end(ex)
    assert 0 == callers.open()


async def test_the_slot_is_of_whoever_took_it() -> None:
    """Also if a later plugin says that it was another."""
    callers = Callers()
    ex = await callers.asks()
    ex[CALLER] = "bob"
    await callers.plugin.on_end(ex)
    assert 0 == callers.open() == callers.open("bob")


async def test_two_in_one_chain() -> None:
    """Each counts for itself."""
    one, other = Callers(concurrent_streams=1), Callers(concurrent_streams=2)
    ex = await one.asks()
    assert await other.plugin.on_request(ex) is None
    await other.plugin.on_end(ex)
    await one.plugin.on_end(ex)
    assert 0 == one.open() == other.open()
    await one.asks()


class Walk:
    """Requests that come and go, and what they have open."""

    def __init__(self, **options: Any) -> None:
        self.callers = Callers(**options)
        self.open: list[Exchange] = []

    async def step(self, what: str, caller: str, seconds: float) -> None:
        self.callers.clock.now += seconds
        if what == "ends" and self.open:
            await self.callers.plugin.on_end(self.open.pop())
        elif what == "asks":
            ex = self.callers.exchange(caller)
            try:
                await self.callers.plugin.on_request(ex)
            except Reject as error:
                assert 1 <= int(error.headers["Retry-After"]) <= 60  # noqa: PT017 - either is right
            else:
                self.open.append(ex)
            assert set(HEADERS) <= set(ex.reply_headers)


steps = st.tuples(
    st.sampled_from(["asks", "asks", "ends"]), st.sampled_from("abcdefghij"), st.sampled_from([0.0, 0.1, 1, 30])
)


@given(st.lists(steps, max_size=60))
async def test_no_slot_is_lost(taken: list[tuple[str, str, float]]) -> None:
    """At every moment each caller has as many slots as requests that are open, and never more than it may."""
    walk = Walk(requests_per_minute=30, burst=4, concurrent_streams=3)
    for step in taken:
        await walk.step(*step)
        for name in "abcdefghij":
            open_now = sum(ex[CALLER] == name for ex in walk.open)
            assert open_now == walk.callers.open(name) <= 3
    for ex in walk.open:
        await walk.callers.plugin.on_end(ex)
    assert not any(walk.callers.open(name) for name in "abcdefghij")


# What is kept


async def test_callers_are_forgotten() -> None:
    """A thousand names leave nothing behind when their bursts are back: a few are forgotten with each request."""
    callers = Callers(requests_per_minute=60, overrides={"ann": Override(requests_per_minute=60_000)})
    for number in range(1000):
        await callers.asked(f"key-{number}")
    assert 1000 == len(callers.known)
    callers.clock.now += 1
    for _ in range(501):
        await callers.asked()
    assert ["ann"] == callers.known


async def test_who_is_not_forgotten() -> None:
    """One who has a request open, and one whose burst is not back."""
    callers = Callers(requests_per_minute=60)
    streaming = await callers.asks("streaming")
    for _ in range(30):
        await callers.asked("busy")
    callers.clock.now += 15
    for number in range(100):
        await callers.asked(f"other-{number}")
    assert {"streaming", "busy"} <= set(callers.known)
    assert ("60", "44", "16s") == told(await callers.asked("busy"))
    assert 1 == callers.open("streaming")
    await callers.plugin.on_end(streaming)


@given(st.lists(steps, max_size=60))
async def test_forgetting_changes_nothing(taken: list[tuple[str, str, float]]) -> None:
    """Every answer is the one that is given where nobody is ever forgotten."""
    one, other = (Walk(requests_per_minute=30, burst=4, concurrent_streams=3) for _ in range(2))
    other.callers.here.forget = lambda now: None  # type: ignore[method-assign]
    for step in taken:
        await one.step(*step)
        await other.step(*step)
        assert [(ex[CALLER], told(ex)) for ex in one.open] == [(ex[CALLER], told(ex)) for ex in other.open]


# Tokens and characters

PROMPT = "word " * 100  # 500 characters, about 120 tokens and 4 for the message


def asking(callers: Callers, caller: str = "ann", **chat: Any) -> Exchange:
    ex = exchange(**{"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 76, **chat})
    ex[CALLER] = caller
    ex.loop = callers.clock  # type: ignore[assignment]
    return ex


def left(ex: Exchange, what: str) -> tuple[str, ...]:
    return tuple(ex.reply_headers[f"x-ratelimit-{name}-{what}"] for name in ("limit", "remaining", "reset"))


async def answered(callers: Callers, ex: Exchange, *events: bytes, kind: OutcomeKind = "completed") -> None:
    """The reply comes, and the request ends."""
    body, kept = HandBody(), Kept()
    ex.asked = True
    StreamDelivery(ex, callers.plugin.on_stream(ex, kept), body).start()
    ex.loop.call_soon = lambda call, *args: call(*args)  # type: ignore[attr-defined]
    body.say(*events)
    body.eof()
    ex.outcome = Outcome(kind)
    await callers.plugin.on_end(ex)


async def test_tokens_as_the_upstream_counts_them() -> None:
    """An estimate of the prompt and the longest reply is taken, and in the end the usage counts."""
    callers = Callers(tokens_per_minute=1000)
    ex = asking(callers)
    await callers.plugin.on_request(ex)
    assert ex.needs_usage
    assert ("1000", "800", "1m5s") == left(ex, "tokens")
    assert "x-ratelimit-limit-characters" not in ex.reply_headers
    await answered(callers, ex, *frames.stream(["Hello"], tokens=(130, 20)))
    ex = asking(callers, n=2)
    await callers.plugin.on_request(ex)
    assert ("1000", str(1000 - 150 - 124 - 2 * 76), "1m5s") == left(ex, "tokens")


async def test_tokens_as_we_count_them() -> None:
    """Without a usage what was sent counts, estimated; of an upstream that failed nothing does, if nothing came."""
    callers = Callers(tokens_per_minute=1000)
    ex = asking(callers)
    await callers.plugin.on_request(ex)
    await answered(callers, ex, *frames.stream(["Hello, world! " * 10]))
    after = asking(callers, max_tokens=None)
    await callers.plugin.on_request(after)
    assert str(1000 - 124 - 34 - 124 - 512) == left(after, "tokens")[1]
    await answered(callers, after, frames.error(), kind="upstream_error")
    ex = asking(callers)
    await callers.plugin.on_request(ex)
    assert str(1000 - 124 - 34 - 200) == left(ex, "tokens")[1]
    await callers.plugin.on_end(ex)  # refused by a later plugin: no upstream was asked
    ex = asking(callers)
    await callers.plugin.on_request(ex)
    assert str(1000 - 124 - 34 - 200) == left(ex, "tokens")[1]


async def test_characters() -> None:
    """Of the prompt as it came and the reply as it was sent, exactly."""
    callers = Callers(characters_per_minute=2000)
    ex = asking(callers)
    await callers.plugin.on_request(ex)
    assert not ex.needs_usage
    assert ("2000", str(2000 - 500 - 4 * 76), "1m5s") == left(ex, "characters")
    await answered(callers, ex, *frames.stream(["Hel", "lo 世界"], tokens=(130, 20)))
    ex = asking(callers)
    await callers.plugin.on_request(ex)
    assert str(2000 - 508 - 804) == left(ex, "characters")[1]


async def test_over_the_tokens() -> None:
    """429 with a wait that is right, at no cost to the rate of requests."""
    callers = Callers(tokens_per_minute=300, requests_per_minute=60)
    ex = asking(callers)
    await callers.plugin.on_request(ex)
    callers.clock.now += 10
    for _ in range(3):
        refused = asking(callers)
        with pytest.raises(Reject) as caught:
            await callers.plugin.on_request(refused)
        error = caught.value
        assert (429, "rate_limit_exceeded", "55") == (error.status, error.code, error.headers["Retry-After"])
        assert {
            "message": "Rate limit reached on tokens per minute: limit 300, 100 left. Try again in 55s.",
            "type": "tokens",
            "param": None,
            "code": "rate_limit_exceeded",
        } == json.loads(error.body)["error"]
        assert ("300", "100", "55s") == left(refused, "tokens")
        assert "60" == refused.reply_headers["x-ratelimit-remaining-requests"]
    callers.clock.now += 55
    await callers.plugin.on_request(asking(callers))


async def test_a_prompt_that_never_fits() -> None:
    """Waiting does not help, and clients are told so. A reply that may be longer than fits is taken for all there is."""
    callers = Callers(tokens_per_minute=150, characters_per_minute=499)
    with pytest.raises(
        Reject, match=r"Request too large on characters per minute: limit 499, .* 500\. Send less"
    ) as caught:
        await callers.plugin.on_request(asking(callers))
    assert (429, "characters") == (caught.value.status, json.loads(caught.value.body)["error"]["type"])
    assert "Retry-After" not in caught.value.headers
    assert "false" == caught.value.headers["x-should-retry"]
    callers = Callers(tokens_per_minute=150)
    ex = asking(callers, max_tokens=100_000)
    await callers.plugin.on_request(ex)
    assert "0" == left(ex, "tokens")[1]


async def test_a_large_prompt_is_measured_elsewhere() -> None:
    """In a thread, and it comes to the same."""
    callers = Callers(characters_per_minute=1_000_000)
    ex = asking(callers, messages=[{"role": "user", "content": "a" * 100_000}], max_tokens=1)
    await callers.plugin.on_request(ex)
    assert str(1_000_000 - 100_004) == left(ex, "characters")[1]


async def test_without_such_a_limit_nobody_counts() -> None:
    """The way back is left as it is, and the upstream is not asked for its usage."""
    callers = Callers(total=Together(requests_per_minute=5))
    ex, kept = asking(callers), Kept()
    await callers.plugin.on_request(ex)
    assert kept is callers.plugin.on_stream(ex, kept)
    assert not ex.needs_usage


async def test_lists_take_no_tokens() -> None:
    """They count as requests, and are not kept from those who have no tokens left."""
    callers = Callers(
        tokens_per_minute=200, characters_per_minute=5000, models={"gpt-4": Together(concurrent_streams=1)}
    )
    ex = asking(callers)
    await callers.plugin.on_request(ex)
    await answered(callers, ex, *frames.stream(["a"], tokens=(130, 2000)))
    for operation in ("models", "quota", "models"):
        listed = await callers.asks(operation=operation)
        assert "x-ratelimit-limit-tokens" not in listed.reply_headers


# Whose limits


async def test_a_model_for_everybody() -> None:
    """All keys together; another model has none, and a refusal takes nothing of the key's."""
    callers = Callers(requests_per_minute=60, models={"gpt-4": Together(requests_per_minute=2)})
    for caller, tightest in (("ann", ("2", "1", "30s")), ("bob", ("2", "0", "1m0s"))):
        ex = asking(callers, caller)
        await callers.plugin.on_request(ex)
        assert tightest == told(ex)
    refused = asking(callers, "eve")
    message = r"Rate limit reached for the model gpt-4 on requests per minute: limit 2, 2 at once\. Try again in 30s\."
    with pytest.raises(Reject, match=message):
        await callers.plugin.on_request(refused)
    assert ("2", "0", "1m0s") == told(refused)
    ex = asking(callers, "eve", model="gpt-3.5")
    await callers.plugin.on_request(ex)
    assert ("60", "59", "1s") == told(ex)


async def test_all_together() -> None:
    """Over all keys and models, lists too; a slot of one is given back when another refuses."""
    callers = Callers(total=Together(concurrent_streams=2), models={"gpt-4": Together(concurrent_streams=1)})
    ex = asking(callers)
    await callers.plugin.on_request(ex)
    with pytest.raises(Reject, match=r"Too many requests in flight for the model gpt-4: limit 1\."):
        await callers.plugin.on_request(asking(callers, "bob"))
    listed = await callers.asks("bob", "models")
    with pytest.raises(Reject, match=r"Too many requests in flight for all requests together: limit 2\."):
        await callers.plugin.on_request(asking(callers, "eve", model="other"))
    assert (1, 1, 0) == (callers.open(), callers.open("bob"), callers.open("eve"))
    await callers.plugin.on_end(ex)
    await callers.plugin.on_end(listed)
    await callers.plugin.on_request(asking(callers, "eve"))


async def test_the_keys_own_limits() -> None:
    """Those come first, then the file's for its name, then the file's for all."""
    callers = Callers(
        requests_per_minute=60, concurrent_streams=1, overrides={"ann": Override(requests_per_minute=120)}
    )
    for caller, own, limit in (
        ("ann", Limits(), "120"),
        ("ann", Limits(requests_per_minute=240), "240"),
        ("bob", Limits(concurrent_streams=9), "60"),
        ("bob", Limits(burst=7), "7"),
        ("eve", Limits(requests_per_minute=2**53 - 1), "100000000"),
    ):
        ex = callers.exchange(caller)
        ex[API_KEY] = ApiKey(name=caller, limits=own)
        await callers.plugin.on_request(ex)
        assert limit == told(ex)[0]
        await callers.plugin.on_end(ex)


async def test_limits_that_change() -> None:
    """What a key has used stays used when its limits become others: so many requests, whatever they cost."""
    callers = Callers(requests_per_minute=60)
    for _ in range(10):
        await callers.asked()
    ex = callers.exchange()
    ex[API_KEY] = ApiKey(name="ann", limits=Limits(requests_per_minute=600))
    await callers.plugin.on_request(ex)
    assert ("600", "589", "1.1s") == told(ex)


# The configuration


async def test_overrides() -> None:
    """A key's own numbers; what they leave out is everybody's, and a burst that nobody set is the key's own minute."""
    callers = Callers(
        requests_per_minute=60,
        concurrent_streams=1,
        overrides={
            "batch": Override(requests_per_minute=6000),
            "slow": Override(burst=2),
            "wide": Override(concurrent_streams=3),
        },
    )
    assert ("60", "59", "1s") == told(await callers.asks("ann"))
    assert ("6000", "5999", "10ms") == told(await callers.asks("batch"))
    assert ("2", "1", "1s") == told(await callers.asks("slow"))
    for left in ("59", "58", "57"):
        assert left == told(await callers.asks("wide"))[1]
    for name in ("ann", "batch", "slow", "wide"):
        assert "too_many_requests_in_flight" == (await callers.refused(name))[0].code


async def test_a_burst_for_everybody() -> None:
    """It holds for keys with another rate too."""
    callers = Callers(burst=5, overrides={"batch": Override(requests_per_minute=6000)})
    assert ("5", "4", "100ms") == told(await callers.asked("ann"))
    assert ("5", "4", "10ms") == told(await callers.asked("batch"))


def configured(**table: object) -> RateLimit:
    return build(RateLimit, table, "plugins[2]", context=Context(folder=Path(), environ={}))


def test_from_a_file() -> None:
    """The tables of a configuration, as they are read."""
    plugin = configured(
        requests_per_minute=10,
        overrides={"ann": {"burst": 3}},
        models={"gpt-4": {"tokens_per_minute": 9000}},
        total={"concurrent_streams": 500},
    )
    assert {"ann": Override(burst=3)} == plugin.overrides
    assert {"gpt-4": Together(tokens_per_minute=9000)} == plugin.models
    assert Together(concurrent_streams=500) == plugin.total


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"requests_per_minute": 0}, r"plugins\[2\].requests_per_minute: "),
        ({"burst": 0}, r"plugins\[2\].burst: "),
        ({"concurrent_streams": 0}, r"plugins\[2\].concurrent_streams: "),
        ({"overrides": {"ann": {"burst": 0}}}, r"plugins\[2\].overrides.ann.burst: "),
        ({"overrides": {"ann": {"brust": 1}}}, r"plugins\[2\].overrides.ann.brust: unknown key; did you mean 'burst'"),
        ({"requests_per_second": 1}, "unknown option 'requests_per_second'"),
        ({"tokens_per_minute": 100_000_001}, r"plugins\[2\].tokens_per_minute: "),
        ({"models": {"gpt-4": {}}}, r"plugins\[2\].models.gpt-4: there is no limit in it; set one"),
        ({"total": {"burst": 1}}, r"plugins\[2\].total: burst belongs to requests_per_minute"),
        ({"name": "a b"}, r"plugins\[2\].name: "),
    ],
)
def test_a_configuration_that_cannot_be_meant(table: dict[str, object], problem: str) -> None:
    """Numbers that would let nobody in, and misspelt ones, stop the start."""
    with pytest.raises(ConfigError, match=problem):
        configured(**table)


def test_it_needs_a_caller() -> None:
    """Without `auth` before it nobody could be told from anybody."""
    auth: Plugin = Auth(keys=(ConfiguredKey(name="ann", key=Secret("sk-ann")),))
    Chain([("auth", auth), ("rate_limit", RateLimit())])
    for chain in ([("rate_limit", RateLimit())], [("rate_limit", RateLimit()), ("auth", auth)]):
        with pytest.raises(ConfigError, match="'rate_limit' needs 'caller'"):
            Chain(chain)


def test_its_codes_are_counted() -> None:
    """Both refusals have series of their own."""
    assert {"rate_limit_exceeded", "too_many_requests_in_flight"} <= set(REFUSALS)


# Durations


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (1e-9, "1ms"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (0.999, "999ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (16.1, "16.1s"),
        (59.999, "59.999s"),
        (59.9999, "1m0s"),
        (86.4, "1m26.4s"),
        (360, "6m0s"),
        (3599.9999, "1h0m0s"),
        (3661.001, "1h1m1.001s"),
        (86_400, "24h0m0s"),
    ],
)
def test_durations(seconds: float, written: str) -> None:
    """As Go writes them, in whole milliseconds, rounded up."""
    assert written == duration(seconds)


@given(st.floats(0, 1e6))
def test_durations_say_what_they_are_of(seconds: float) -> None:
    """Read again, they are that time, and less than a millisecond more."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"([\d.]+)(h|ms|m|s)", duration(seconds))
    assert duration(seconds) == "".join(number + unit for number, unit in parts)
    assert -1e-6 <= sum(float(number) * units[unit] for number, unit in parts) - seconds < 0.001 + 1e-6
