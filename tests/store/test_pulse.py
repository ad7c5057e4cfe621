"""The pulse: who lives, and what version the keys have."""

import asyncio
import io
import json

import pytest
from servers import scripted

from relay.log import configure
from relay.store import pulse as module
from relay.store.port import StoreError
from relay.store.pulse import TAG, Pulse, beating


@pytest.fixture
def store(every_store):
    return every_store


@pytest.fixture
def log():
    return configure(io.BytesIO())


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_it_knows_at_once(store, log):
    """When the block begins the first beat has been answered."""
    before = asyncio.get_running_loop().time()
    async with beating(store, log) as pulse:
        assert (0, 1, True) == (pulse.version, pulse.replicas, pulse.up)
        assert before <= pulse.seen_at <= asyncio.get_running_loop().time()


async def test_it_hears_of_changes(store, log, count):
    """The version is the counter's, beat by beat."""
    async with beating(store, log) as pulse:
        assert 1 == await store.run(count, [store.key(TAG, "version")])
        await until(lambda: pulse.version == 1)


async def test_it_counts_who_lives(store, log):
    """Every process with a pulse counts; one that ends counts no more at once."""
    async with beating(store, log) as first:
        async with beating(store, log) as second:
            await until(lambda: (first.replicas, second.replicas) == (2, 2))
        await first.beat()
        assert 1 == first.replicas


async def test_one_that_died_counts_no_more(store, log, monkeypatch):
    """A process that was killed is forgotten when its time is over."""
    monkeypatch.setattr(module, "LIVES_MS", 300)
    await Pulse(store, log).beat()
    async with beating(store, log) as pulse:
        assert 2 == pulse.replicas
        await until(lambda: pulse.replicas == 1)


async def test_one_that_died_before_the_clock_was_set_back(store, log):
    """It does not count until the clock has come forward again."""
    add = scripted("return redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])")
    await store.run(add, [store.key(TAG, "processes")], [4_000_000_000_000, "dead"])
    async with beating(store, log) as pulse:
        assert 1 == pulse.replicas


class Broken:
    """A store that is away while `away`."""

    def __init__(self, store):
        self._store = store
        self.away = False
        self.key = store.key

    async def run(self, *asked):
        if self.away:
            raise StoreError("slow", acted=True)
        return await self._store.run(*asked)


async def test_it_says_when_the_store_is_away(store, monkeypatch):
    """What was known stays, `seen_at` does not move, and the log is told once of a silence that lasts and of its end."""
    monkeypatch.setattr(module, "QUIET_S", 0.0)
    written, broken = io.BytesIO(), Broken(store)
    pulse = Pulse(broken, configure(written))
    await pulse.beat()
    broken.away, seen_at = True, pulse.seen_at
    for _ in range(3):
        await pulse.beat()
        assert (False, 1, seen_at) == (pulse.up, pulse.replicas, pulse.seen_at)
    broken.away = False
    await pulse.beat()
    await pulse.end()
    assert (True, True) == (pulse.up, pulse.seen_at >= seen_at)
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [("store away", "warning"), ("store back", "info")] == [(line["event"], line["level"]) for line in lines]


async def test_a_repeat_changes_nothing(store, log, kind):
    """A beat that is sent twice leaves one name, which goes with the second `end` as with the first."""
    pulse = Pulse(store, log)
    for _ in range(2):
        await pulse.beat()
    assert 1 == pulse.replicas
    for _ in range(2):
        await pulse.end()
    if len(kind.servers) == 1:
        assert 0 == kind.main.connect(db=1 if "/1" in kind.url else 0).zcard(store.key(TAG, "processes"))
