"""`rate_limit` on a real store: several processes are one, nothing of a request stays, and without the store it goes on."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis

from relay import limits
from relay.errors import Reject
from relay.exchange import CALLER, Exchange, Outcome
from relay.store.port import Arg, Script, Store, StoreError
from relay.testing.reply import Lent, exchange
from relay_plugins.rate_limit import Override, RateLimit, Together

DEGRADED = "relay_degraded_requests_total{concern=" + '"rate_limit"}'


class Watched:
    """A store that can be taken away, and remembers what it was asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: list[str] = []
        self.away = False
        self.silent = False  # it acts, and its answers get lost

    def key(self, tag: str, *parts: str) -> str:
        return self._store.key(tag, *parts)

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg] = ()) -> Any:
        self.asked.append(script.name)
        if self.away:
            return self._lost(None)
        answer = self._store.run(script, keys, args)
        return self._lost(answer) if self.silent else answer

    def _lost(self, answer: Any) -> asyncio.Future[Any]:
        async def lose() -> Any:
            if answer is not None:
                await answer
            raise StoreError("slow" if answer is not None else "away", acted=answer is not None)

        return asyncio.ensure_future(lose())


class Processes:
    """Several relays' plugins on one store."""

    def __init__(self, store: Store, outside: redis.Redis | redis.RedisCluster) -> None:
        self.store = Watched(store)
        self.lent = Lent(store=self.store)
        self.stack = AsyncExitStack()
        self.outside = outside
        self.count = 0

    async def start(self, **options: Any) -> RateLimit:
        plugin = RateLimit(**options)
        await self.stack.enter_async_context(plugin.lifespan(self.lent.services))
        return plugin

    def exchange(self, caller: str = "ann", **chat: Any) -> Exchange:
        ex = exchange(**chat)
        ex.id = f"request-{self.count}"
        self.count += 1
        ex[CALLER] = caller
        return ex

    async def ask(self, plugin: RateLimit, caller: str = "ann", **chat: Any) -> Exchange | Reject:
        ex = self.exchange(caller, **chat)
        try:
            await plugin.on_request(ex)
        except Reject as error:
            error.headers |= dict(ex.reply_headers)
            return error
        return ex

    async def ended(self, plugin: RateLimit, *exchanges: Exchange) -> None:
        for ex in exchanges:
            ex.outcome = Outcome("completed")
            await plugin.on_end(ex)
        await self.sent(plugin)

    async def sent(self, plugin: RateLimit) -> None:
        """What nobody waits for has been answered."""
        while plugin._limiter._sent:
            await asyncio.wait(plugin._limiter._sent)

    def leases(self) -> dict[str, dict[str, float]]:
        """By scope, what is counted as open."""
        found = {}
        for key in self.outside.scan_iter("*:open"):
            leases = self.outside.zrange(key, 0, -1, withscores=True)
            found[key.decode()] = {lease.decode(): end for lease, end in leases}
        return found


@pytest.fixture
async def processes(another: Callable[[], Awaitable[Store]], outside: redis.Redis) -> AsyncIterator[Processes]:
    made = Processes(await another(), outside)
    async with made.stack:
        yield made


def let_in(asked: list[Exchange | Reject]) -> list[Exchange]:
    return [one for one in asked if isinstance(one, Exchange)]


async def two(processes: Processes, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[RateLimit, RateLimit]:
    """Two processes, as far as a plugin can tell."""
    first = await processes.start(**options)
    return first, await processes.start(**options)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        pytest.param({"burst": 30, "requests_per_minute": 1}, "rate_limit_exceeded", id="requests"),
        pytest.param({"concurrent_streams": 30}, "too_many_requests_in_flight", id="in flight"),
        pytest.param({"characters_per_minute": 30 * 6 + 5}, "rate_limit_exceeded", id="characters"),
        pytest.param({"models": {"gpt-4": Together(concurrent_streams=30)}}, "too_many_requests_in_flight", id="model"),
        pytest.param({"total": Together(requests_per_minute=30)}, "rate_limit_exceeded", id="all"),
    ],
)
async def test_two_processes_are_one(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], code: str
) -> None:
    """Of a hundred at once exactly as many are let in as may be, whichever process they come to."""
    plugins = await two(processes, monkeypatch, **{"concurrent_streams": 1000, **options})
    chat = {"max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    asked = await asyncio.gather(*(processes.ask(plugins[i % 2], **chat) for i in range(100)))
    passed = let_in(asked)
    assert 30 == len(passed)
    assert {code} == {one.code for one in asked if isinstance(one, Reject)}
    for plugin in plugins:
        await processes.ended(plugin, *(ex for ex in passed if plugin._open in ex))
    assert not processes.leases()


async def test_one_wait_for_all_scopes(processes: Processes) -> None:
    """The scripts of all scopes are asked for before anything is awaited; the end of a request awaits nothing."""
    plugin = await processes.start(
        models={"gpt-4": Together(requests_per_minute=5)}, total=Together(concurrent_streams=5)
    )
    ex = processes.exchange()
    asking = asyncio.ensure_future(plugin.on_request(ex))
    await asyncio.sleep(0)
    assert ["limits_take"] * 3 == processes.store.asked
    await asking
    assert ["limits_take"] * 3 == processes.store.asked
    ending = plugin.on_end(ex)
    with pytest.raises(StopIteration):
        ending.send(None)
    assert ["limits_end"] * 3 == processes.store.asked[3:]
    await processes.sent(plugin)
    assert not processes.leases()


async def test_a_refusal_gives_back_what_the_others_took(processes: Processes) -> None:
    """Slots, requests and tokens."""
    plugin = await processes.start(
        requests_per_minute=60, characters_per_minute=1000, total=Together(concurrent_streams=1)
    )
    first = await processes.ask(plugin, "bob")
    assert isinstance(first, Exchange)
    for _ in range(3):
        refused = await processes.ask(plugin)
        assert isinstance(refused, Reject)
        assert "for all requests together" in refused.message
        await processes.sent(plugin)
    await processes.ended(plugin, first)
    ex = await processes.ask(plugin, max_tokens=1)
    assert isinstance(ex, Exchange)
    assert "60" == ex.reply_headers["x-ratelimit-limit-requests"]
    assert int(ex.reply_headers["x-ratelimit-remaining-requests"]) >= 58  # but for what came back by itself meanwhile
    assert str(1000 - 6) == ex.reply_headers["x-ratelimit-remaining-characters"]


async def test_what_was_estimated_is_set_right(processes: Processes) -> None:
    """When it has ended, over all processes."""
    plugin = await processes.start(characters_per_minute=1000)
    ex = await processes.ask(plugin, max_tokens=100)
    assert isinstance(ex, Exchange)
    assert ("598", "1m5s"[:2]) == (
        ex.reply_headers["x-ratelimit-remaining-characters"],
        ex.reply_headers["x-ratelimit-reset-characters"][:2],
    )
    await processes.ended(plugin, ex)
    ex = await processes.ask(plugin, max_tokens=1)
    assert isinstance(ex, Exchange)
    assert "994" == ex.reply_headers["x-ratelimit-remaining-characters"]


# Without the store


async def test_away(processes: Processes) -> None:
    """Its part of the limits holds, counted here, and replies and metrics say so; it is asked again with every request."""
    plugin = await processes.start(requests_per_minute=60, burst=9, concurrent_streams=6)
    plugin._limiter._replicas = lambda: 3
    first = await processes.ask(plugin)
    assert isinstance(first, Exchange)
    assert "x-relay-degraded" not in first.reply_headers
    processes.store.away = True
    second = await processes.ask(plugin)
    assert isinstance(second, Exchange)
    assert "rate_limit" == second.reply_headers["x-relay-degraded"]
    assert ("3", "2") == tuple(second.reply_headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining"))
    refused = await processes.ask(plugin)  # what is open counts, whoever let it in
    assert isinstance(refused, Reject)
    assert ("too_many_requests_in_flight", "rate_limit") == (refused.code, refused.headers["x-relay-degraded"])
    assert 2 == await processes.lent.count(DEGRADED)
    await processes.ended(plugin, first)  # gets lost
    processes.store.away = False
    third = await processes.ask(plugin)
    assert isinstance(third, Exchange)
    assert "x-relay-degraded" not in third.reply_headers
    await processes.ended(plugin, second, third)
    assert [[first.id]] == [list(open_now) for open_now in processes.leases().values()]  # until its lease ends
    assert 2 == await processes.lent.count(DEGRADED)


async def test_answers_get_lost(processes: Processes) -> None:
    """The store did it, and nobody heard of it: it is given back."""
    plugin = await processes.start(requests_per_minute=60, total=Together(concurrent_streams=5))
    processes.store.silent = True
    ex = await processes.ask(plugin)
    assert isinstance(ex, Exchange)
    assert "rate_limit" == ex.reply_headers["x-relay-degraded"]
    await processes.sent(plugin)
    assert not processes.leases()
    await processes.ended(plugin, ex)
    assert ["limits_take"] * 2 + ["limits_undo"] * 2 + ["limits_end"] * 2 == processes.store.asked


async def test_open_when_the_store_is_back(processes: Processes) -> None:
    """What was let in without it counts there from the next renewal to its end, and takes nothing of the rates."""
    plugin = await processes.start(concurrent_streams=2, tokens_per_minute=10_000)
    processes.store.away = True
    without = [await processes.ask(plugin) for _ in range(2)]
    processes.store.away = False
    assert not processes.leases()
    await plugin._limiter.renew(processes.store)
    assert [{ex.id for ex in let_in(without)}] == [set(open_now) for open_now in processes.leases().values()]
    refused = await processes.ask(plugin)
    assert isinstance(refused, Reject)
    assert "x-relay-degraded" not in refused.headers
    await processes.ended(plugin, *let_in(without))
    assert not processes.leases()
    ex = await processes.ask(plugin)
    assert isinstance(ex, Exchange)
    assert int(ex.reply_headers["x-ratelimit-remaining-tokens"]) > 9_000


async def test_alone_it_takes_as_much_as_one_may(processes: Processes) -> None:
    """Of one request a minute three processes have one each: none is kept out entirely."""
    plugin = await processes.start(requests_per_minute=1, tokens_per_minute=90)
    plugin._limiter._replicas = lambda: 3
    processes.store.away = True
    assert isinstance(await processes.ask(plugin), Exchange)
    assert isinstance(await processes.ask(plugin), Reject)


# Clients that leave, processes that live


async def leave_at_random(processes: Processes, plugin: RateLimit, count: int) -> None:
    """Requests whose clients leave at any moment; those that were let in have their end, as the relay promises."""
    chance = random.Random(4711)

    async def ask(caller: str) -> None:
        ex = processes.exchange(caller)
        asking = asyncio.ensure_future(plugin.on_request(ex))
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait((asking,))
        if not asking.cancelled() and asking.exception() is None:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            await plugin.on_end(ex)

    for _ in range(count // 50):
        await asyncio.gather(*(ask(chance.choice("abc")) for _ in range(50)))
    await processes.sent(plugin)
    assert not any(processes.leases().values())
    assert not plugin._limiter._leased
    assert 0 == sum(caller.in_flight for caller in plugin._limiter.here._callers.values())


async def test_clients_that_leave(processes: Processes) -> None:
    plugin = await processes.start(
        total=Together(concurrent_streams=40), overrides={"a": Override(concurrent_streams=3)}
    )
    await leave_at_random(processes, plugin, 500)


@pytest.mark.long
async def test_many_clients_that_leave(processes: Processes) -> None:
    plugin = await processes.start(
        total=Together(concurrent_streams=40), overrides={"a": Override(concurrent_streams=3)}
    )
    await leave_at_random(processes, plugin, 10_000)


async def test_leases_are_renewed(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a request is open, also if its lease was lost meanwhile; and no longer."""
    monkeypatch.setattr(limits, "RENEW_EVERY_S", 0.001)
    plugin = await processes.start()
    ex = await processes.ask(plugin)
    assert isinstance(ex, Exchange)
    [[before]] = [list(open_now.values()) for open_now in processes.leases().values()]
    async with asyncio.timeout(10):
        while [[before]] == [list(open_now.values()) for open_now in processes.leases().values()]:
            await asyncio.sleep(0.001)
        processes.outside.flushall()
        while not processes.leases():
            await asyncio.sleep(0.001)
    await processes.ended(plugin, ex)
    await asyncio.sleep(0.01)
    assert not processes.leases()


async def test_many_are_renewed(processes: Processes) -> None:
    """More than go into one script, of more scopes than go together."""
    plugin = await processes.start(
        requests_per_minute=10_000, concurrent_streams=10_000, total=Together(concurrent_streams=2_000)
    )
    callers = [f"key-{number % 120}" for number in range(1_100)]
    asked = await asyncio.gather(*(processes.ask(plugin, caller) for caller in callers))
    processes.outside.flushall()
    await plugin._limiter.renew(processes.store)
    assert 121 == len(processes.leases())
    assert 2 * 1_100 == sum(map(len, processes.leases().values()))
    await processes.ended(plugin, *let_in(asked))
    assert not processes.leases()


async def test_two_of_one_name(processes: Processes) -> None:
    """In one chain they would take each other's requests for their own (`relay.assembly` refuses that); of two names they do not."""
    first = await processes.start(concurrent_streams=1)
    second = await processes.start(name="second")
    ex = await processes.ask(first)
    assert isinstance(ex, Exchange)
    await second.on_request(ex)
    assert 2 == len(processes.leases())
    await processes.ended(second, ex)
    await processes.ended(first, ex)
    assert not processes.leases()
