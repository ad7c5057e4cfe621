"""A moderator's calls over several processes: never too many in any second, fairly shared, slower when it says so.

The clock of the server is the one of a loop that waits for no timer; it stands in for `TIME` in the script.
"""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import account as module
from relay.account import BLOCK_S, RETRY_S, Account
from relay.budget import Budget
from relay.pure.pace import JITTER_S, RECOVERY_S
from relay.store.port import Script, StoreError, key_name
from relay.testing.clock import JumpingLoop

START_US = 4_000_000_000_000_000


class Server:
    """The script on a real server, at once, with a loop's clock. away: it does not answer."""

    def __init__(self, socket: str, loop: asyncio.AbstractEventLoop, answers_after_s: float = 0.001) -> None:
        self.client = redis.Redis(unix_socket_path=socket)
        self.client.flushdb()
        self.loop = loop
        self.source = module.LEASE.source.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)")
        assert self.source != module.LEASE.source
        self.sha = hashlib.sha1(self.source.encode()).hexdigest()
        self.client.script_load(self.source)
        self.answers_after_s = answers_after_s
        self.away = False
        self.asked: list[float] = []

    def key(self, tag: str, *parts: str) -> str:
        return key_name("relay", tag, parts)

    def run(self, script: Script, keys: Any, args: Any = ()) -> Any:
        assert script is module.LEASE
        self.asked.append(self.loop.time())
        future = self.loop.create_future()
        if self.away:
            self.loop.call_later(0.05, future.set_exception, StoreError("slow", acted=False))
            return future
        answer = self.lease(self.loop.time(), keys, args)
        self.loop.call_later(self.answers_after_s, lambda: future.done() or future.set_result(answer))
        return future

    def lease(self, now: float, keys: Any, args: Any) -> list[int]:
        us = START_US + round(now * 1e6)
        self.client.delete("clock")
        self.client.rpush("clock", us // 1_000_000, us % 1_000_000)
        return self.client.evalsha(self.sha, len(keys), *keys, *args)

    def close(self) -> None:
        self.client.close()


class Process:
    """One that shares the account, and what it has called when."""

    def __init__(self, server: Server, calls: float, replicas: int = 1) -> None:
        self.account = Account(server, "tms", calls, lambda: replicas)
        self.budget = Budget(calls, self.account)
        self.loop = server.loop
        self.called: list[float] = []
        self.tasks: list[asyncio.Task[None]] = []

    def want(self, count: int, stream: str = "a") -> None:
        self.tasks += [asyncio.create_task(self._call(stream)) for _ in range(count)]

    async def _call(self, stream: str) -> None:
        assert self.budget.try_take() or await self.budget.take(stream)
        self.called.append(self.loop.time())

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        await self.account.close()


def most_in_a_second(times: list[float]) -> int:
    """How many there are in any second, half-open."""
    times = sorted(times)
    most = first = 0
    for last, now in enumerate(times):
        while times[first] <= now - 1:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.fixture
def jumping(server: str) -> Iterator[JumpingLoop]:
    loop = JumpingLoop()
    yield loop
    loop.close()


def run(loop: JumpingLoop, socket: str, work: Any, **options: Any) -> None:
    async def whole() -> None:
        server = Server(socket, loop, **options)
        try:
            await work(server)
        finally:
            server.close()

    loop.run_until_complete(whole())


@pytest.mark.parametrize("calls", [1, 2, 7, 50, 800])
@pytest.mark.parametrize("processes", [1, 2, 5])
def test_together_no_more_than_one_may(server: str, jumping: JumpingLoop, calls: int, processes: int) -> None:
    """In any second, whatever is asked for; and hardly less, all the time."""

    async def work(store: Server) -> None:
        started = store.loop.time()
        sharing = [Process(store, calls) for _ in range(processes)]
        for each in sharing:
            each.want(3 * calls)
        await asyncio.sleep(8.0 / processes + 2)
        times = [time for each in sharing for time in each.called]
        assert most_in_a_second(times) <= calls
        burst = max(1, calls // 20)
        lasted = min(8.0 / processes + 2, max(times) - started + 1)
        assert len(times) >= min(
            3 * calls * processes, 0.9 * (calls - burst + 1) / (1 + BLOCK_S + JITTER_S) * (lasted - 1)
        )
        assert len(store.asked) <= processes * 51 * (8.0 / processes + 2) + processes
        for each in sharing:
            await each.close()

    run(jumping, server, work)


def test_the_store_is_not_asked_for_every_call(server: str, jumping: JumpingLoop) -> None:
    """A steady flow has its slots before it needs them, and what does not flow asks for nothing."""

    async def work(store: Server) -> None:
        process = Process(store, 800)
        waited = 0
        for _ in range(2000):
            if not process.budget.try_take():
                waited += 1
                await process.budget.take("a")
            await asyncio.sleep(1 / 400)
        assert len(store.asked) <= 2000 / 400 / 0.02 + 10
        assert waited < 100
        before = len(store.asked)
        await asyncio.sleep(10)
        assert len(store.asked) <= before + 1
        await process.close()

    run(jumping, server, work)


@pytest.mark.parametrize("calls", [2, 50, 800])
def test_fair(server: str, jumping: JumpingLoop, calls: int) -> None:
    """Three that want all there is get as much as one another, whenever they came."""

    async def work(store: Server) -> None:
        sharing = []
        for _ in range(3):
            sharing.append(Process(store, calls))
            sharing[-1].want(40 * calls)
            await asyncio.sleep(0.007)
        await asyncio.sleep(30)
        counts = [sum(time >= 1010 for time in each.called) for each in sharing]
        assert max(counts) - min(counts) <= max(2, 0.05 * max(counts))
        for each in sharing:
            await each.close()

    run(jumping, server, work)


def test_one_that_wants_little_gets_it(server: str, jumping: JumpingLoop) -> None:
    """While another has a crowd: it waits for some blocks, not for the crowd."""

    async def work(store: Server) -> None:
        crowd, single = Process(store, 100), Process(store, 100)
        crowd.want(3000)
        await asyncio.sleep(1)
        for _ in range(20):
            asked_at = store.loop.time()
            single.want(1)
            await single.tasks[-1]
            assert store.loop.time() - asked_at < 1
            await asyncio.sleep(0.3)
        await crowd.close()
        await single.close()

    run(jumping, server, work)


def test_all_yield(server: str, jumping: JumpingLoop) -> None:
    """When the service says "too many" to one of two, both are slower, below what it takes; then faster again."""

    async def work(store: Server) -> None:
        sharing = [Process(store, 50) for _ in range(2)]
        for each in sharing:
            each.want(3000)
        await asyncio.sleep(5)
        whole = sharing[0].budget.rate
        refusing = 30.0  # what the service really allows
        limit_s = 10
        for _ in range(limit_s * 10):
            await asyncio.sleep(0.1)
            for each in sharing:
                recent = [time for other in sharing for time in other.called if time > store.loop.time() - 1]
                if len(recent) > refusing:
                    each.budget.refused()
                    break
        recent = [time for each in sharing for time in each.called if time > store.loop.time() - 5]
        assert len(recent) / 5 < 0.8 * whole
        assert all(each.budget.rate < whole for each in sharing)
        await asyncio.sleep(RECOVERY_S + 2)
        assert all(each.budget.rate == pytest.approx(whole, abs=0.001) for each in sharing)
        for each in sharing:
            await each.close()

    run(jumping, server, work)


def test_without_the_store(server: str, jumping: JumpingLoop) -> None:
    """Each has its part, paced here, and says so; when the store answers, all of it again."""

    async def work(store: Server) -> None:
        sharing = [Process(store, 60, replicas=2) for _ in range(2)]
        for each in sharing:
            each.want(5000)
        await asyncio.sleep(3)
        assert not any(each.account.degraded for each in sharing)
        store.away = True
        await asyncio.sleep(5)
        assert all(each.account.degraded for each in sharing)
        times = [time for each in sharing for time in each.called]
        assert most_in_a_second(times) <= 60
        before = store.loop.time() - 3
        for each in sharing:
            assert 3 * 22 <= sum(time > before for time in each.called) <= 3 * 30
        store.away = False
        await asyncio.sleep(1 + RETRY_S)
        assert not any(each.account.degraded for each in sharing)
        await asyncio.sleep(3)
        assert most_in_a_second([time for each in sharing for time in each.called]) <= 60 + 4
        for each in sharing:
            await each.close()

    run(jumping, server, work)


@pytest.mark.parametrize("answers_after_s", [0.04, 0.05, 0.06, 0.3])
def test_a_store_that_is_slow(server: str, jumping: JumpingLoop, answers_after_s: float) -> None:
    """A slot that is no good any more when it comes keeps nobody waiting: each process has its part then."""

    async def work(store: Server) -> None:
        sharing = [Process(store, 60, replicas=2) for _ in range(2)]
        for each in sharing:
            each.want(5000)
        await asyncio.sleep(10)
        assert {answers_after_s >= BLOCK_S} == {each.account.degraded for each in sharing}
        times = [time for each in sharing for time in each.called]
        assert most_in_a_second(times) <= 60
        assert len(times) >= 8 * 2 * 22
        for each in sharing:
            await each.close()

    run(jumping, server, work, answers_after_s=answers_after_s)


def test_what_is_held_is_made_up_for(server: str, jumping: JumpingLoop) -> None:
    """A slot that is used late is not one more, also if there is none just then."""

    async def work(store: Server) -> None:
        process = Process(store, 10)
        calls = []
        for _ in range(40):
            await process.budget.take("a")
            process.budget.hold()
            await asyncio.sleep(0.01)
            process.budget.let_go()
            calls.append(store.loop.time())
        assert most_in_a_second(calls) <= 11
        assert calls[-1] - calls[0] >= 39 / 10
        assert await process.budget.take("a")
        process.budget.give_back()
        await process.close()

    run(jumping, server, work)


asks = st.tuples(
    st.sampled_from([0.0, 0.001, 0.02, 0.05, 0.2, 1.0, 30.0]),
    st.integers(0, 3),
    st.integers(0, 60),
    st.integers(0, 100),
    st.sampled_from([0, 0, 0, 0, 0, 1]),
)


@settings(max_examples=100)
@given(st.sampled_from([(0.5, 1), (1.0, 1), (46.0, 2), (740.0, 40)]), st.lists(asks, max_size=60))
def test_the_script_never_grants_more_than_flows(
    server: str, account: tuple[float, int], asked: list[tuple[float, int, int, int, int]]
) -> None:
    """Of any run of questions: a bucket full, what the rate gives in that time, and what was given back."""
    rate, burst = account
    loop = asyncio.new_event_loop()
    store = Server(server, loop)
    keys = [store.key("budget:x", "account"), store.key("budget:x", "processes")]
    granted, back, times, held = [], [], [], Counter[int]()
    try:
        for now, (_, process, want, unused, refused) in zip(accumulate(wait for wait, *_ in asked), asked, strict=True):
            given = min(unused, held[process])
            got, thousandths = store.lease(
                now, keys, (f"p{process}", want, given, refused, rate, burst, min(1.0, rate), rate / RECOVERY_S)
            )
            assert 0 <= got <= min(want, burst)
            assert min(1.0, rate) * 999 <= thousandths <= rate * 1000 + 1
            held[process] += got - given
            granted.append(got)
            back.append(given)
            times.append(now)
            if refused:
                assert not got
    finally:
        store.close()
        loop.close()
    for first, begun in enumerate(times):
        for last in range(first, len(times)):
            room = burst + rate * (times[last] - begun) + sum(back[first : last + 1]) + 1e-6
            assert sum(granted[first : last + 1]) <= room


def test_a_single_process_is_not_kept_waiting(server: str) -> None:
    """Whatever it did before: after a while without a question there is a slot."""
    loop = asyncio.new_event_loop()
    store, chance = Server(server, loop), random.Random(4711)
    keys = [store.key("budget:x", "account"), store.key("budget:x", "processes")]
    now = 0.0
    for _ in range(300):
        now += chance.choice([0.0, 0.001, 0.05, 0.3])
        arguments = (f"p{chance.randrange(3)}", chance.randrange(4), 0, 0, 5.0, 1, 1.0, 0.25)
        store.lease(now, keys, arguments)
    now += 0.5
    assert store.lease(now, keys, ("p0", 1, 0, 0, 5.0, 1, 1.0, 0.25))[0] == 1
    store.close()
    loop.close()
