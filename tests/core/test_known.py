"""What a process remembers of keys: for how long, how much, and what that costs the store. On a clock that jumps."""

import asyncio
from dataclasses import dataclass

import pytest

from relay import known
from relay.keyring import Admitted, Found
from relay.keys import ApiKey
from relay.known import ASKED_EVERY_S, FRESH_S, TRUSTED_S, KnownKeys
from relay.store.port import StoreError

pytestmark = pytest.mark.jumping_clock

AHEAD_S = 5_000.0  # the store's clock before the loop's
D = b"digest of a secret"


@dataclass
class Beat:
    """A pulse by hand. After `beat` it is as one that goes on; `still` leaves it as it is."""

    version: int = 1
    seen_at: float = 0.0
    up: bool = True


class Ring:
    """A keyring that counts how often it is asked. away: it cannot be."""

    def __init__(self):
        self.keys = {}
        self.version = 1
        self.asked = 0
        self.away = False
        self.gate = None

    async def find(self, digest):
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.away:
            raise StoreError("away", acted=False)
        return Found(self.version, now() + AHEAD_S, self.keys.get(digest))


def now():
    return asyncio.get_running_loop().time()


def pass_time(seconds):
    asyncio.get_running_loop().jump(seconds)


@pytest.fixture
def ring():
    ring = Ring()
    ring.keys[D] = Admitted(ApiKey(name="ann"), False, None)
    return ring


@pytest.fixture
async def pulse():
    return Beat(seen_at=now())


@pytest.fixture
async def keys(ring, pulse):
    keys = KnownKeys(ring, pulse)
    yield keys
    await keys.close()


async def test_no_trip_while_nothing_changes(keys, ring, pulse):
    """One question a minute, however many requests there are."""
    for _ in range(1000):
        pass_time(0.05)
        pulse.seen_at = now()
        assert "ann" == (await keys.find(D)).admitted.key.name
    assert 1 == ring.asked
    pass_time(ASKED_EVERY_S)
    pulse.seen_at = now()
    await keys.find(D)
    assert 2 == ring.asked


async def test_a_change_of_any_key_asks_once_more(keys, ring, pulse):
    """The version is of all keys together; the answer that comes with it holds again."""
    await keys.find(D)
    pass_time(0.2)
    ring.version = pulse.version = 2
    pulse.seen_at = now()
    for _ in range(5):
        await keys.find(D)
    assert 2 == ring.asked


async def test_a_key_that_is_taken_away_ends_with_the_next_beat(keys, ring, pulse):
    """Disabled or deleted, the process learns it by the version."""
    await keys.find(D)
    del ring.keys[D]
    ring.version = 2
    pass_time(0.2)
    assert (await keys.find(D)).admitted is not None  # not yet told
    pulse.version, pulse.seen_at = 2, now()
    assert (await keys.find(D)).admitted is None


async def test_without_a_beat_nothing_is_believed(keys, ring, pulse):
    """After less than a second each request asks: a key taken away meanwhile is."""
    await keys.find(D)
    del ring.keys[D]
    pass_time(FRESH_S + 0.01)
    assert (await keys.find(D)).admitted is None


async def test_what_was_asked_after_the_beat_is_newer_than_it(keys, ring, pulse):
    """A change that the beat has not seen yet does not make each request ask until the next one."""
    ring.version = 2
    pass_time(0.1)
    for _ in range(5):
        await keys.find(D)
    assert 1 == ring.asked


async def test_store_away(keys, ring, pulse):
    """What was good within the last minute still is, and says so; then nobody knows."""
    await keys.find(D)
    ring.away = True
    pass_time(TRUSTED_S - 1)
    answer = await keys.find(D)
    assert ("ann", True) == (answer.admitted.key.name, answer.degraded)
    pass_time(2)
    with pytest.raises(StoreError):
        await keys.find(D)
    ring.away = False
    assert not (await keys.find(D)).degraded


async def test_the_minute_begins_with_the_last_beat(keys, ring, pulse):
    """Not with the last question: that may be long ago while all is well."""
    await keys.find(D)
    pass_time(50)
    pulse.seen_at = now()
    await keys.find(D)
    assert 1 == ring.asked
    ring.away = True
    pass_time(TRUSTED_S - 1)
    assert (await keys.find(D)).degraded


async def test_an_unknown_key_while_the_store_is_away(keys, ring, pulse):
    """Nobody can say whether there is one, also where there was none a moment ago."""
    assert (await keys.find(b"x")).admitted is None
    ring.away = True
    pass_time(1)
    for digest in (b"x", b"y"):
        with pytest.raises(StoreError):
            await keys.find(digest)


async def test_a_wrong_key_that_comes_again_and_again(keys, ring, pulse):
    """It is asked for once, until keys change: it may be a new one then."""
    for _ in range(100):
        assert (await keys.find(b"x")).admitted is None
    assert 1 == ring.asked
    ring.keys[b"x"] = Admitted(ApiKey(name="new"), False, None)
    pass_time(0.1)
    ring.version = pulse.version = 2
    pulse.seen_at = now()
    assert "new" == (await keys.find(b"x")).admitted.key.name


async def test_inventions_do_not_fill_memory_nor_crowd_out(keys, ring, pulse, monkeypatch):
    """What is remembered of keys that there are not is bounded and stands apart."""
    monkeypatch.setattr(known, "MAX_UNKNOWN", 10)
    await keys.find(D)
    for number in range(200):
        await keys.find(b"x%d" % number)
    asked = ring.asked
    await keys.find(D)
    assert asked == ring.asked
    assert (1, 10) == (len(keys._known), len(keys._unknown))


async def test_what_is_known_is_bounded(keys, ring, pulse, monkeypatch):
    """The one that was used longest ago is forgotten."""
    monkeypatch.setattr(known, "MAX_KNOWN", 2)
    for name in (b"a", b"b", b"c"):
        ring.keys[name] = Admitted(ApiKey(name="ann"), False, None)
    for name in (b"a", b"b", b"a", b"c"):
        await keys.find(name)
    asked = ring.asked
    await keys.find(b"a")
    assert asked == ring.asked
    await keys.find(b"b")
    assert asked + 1 == ring.asked


async def test_many_at_the_same_time_ask_once(keys, ring):
    """Also when the first of them leaves before the answer has come."""
    ring.gate = asyncio.Event()
    tasks = [asyncio.ensure_future(keys.find(D)) for _ in range(50)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    ring.gate.set()
    first, *answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert {"ann"} == {answer.admitted.key.name for answer in answers}
    assert (1, {}) == (ring.asked, keys._asking)


async def test_all_who_wait_hear_that_it_failed(keys, ring):
    """Each gets the error, and nothing is left."""
    ring.away = True
    errors = await asyncio.gather(*(keys.find(D) for _ in range(5)), return_exceptions=True)
    assert [True] * 5 == [isinstance(error, StoreError) for error in errors]
    assert (1, {}) == (ring.asked, keys._asking)


async def test_nobody_is_left_to_hear_that_it_failed(keys, ring):
    """A failure that nobody waits for any more is no loose end."""
    ring.away, ring.gate = True, asyncio.Event()
    task = asyncio.ensure_future(keys.find(D))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    ring.gate.set()


async def test_an_end_comes_by_the_stores_clock(keys, ring, pulse):
    """To the moment, without a question."""
    ring.keys[D] = Admitted(ApiKey(name="ann"), False, now() + AHEAD_S + 10)
    assert not (await keys.find(D)).ended
    pass_time(9.9)
    pulse.seen_at = now()
    assert not (await keys.find(D)).ended
    pass_time(0.1)
    pulse.seen_at = now()
    assert (await keys.find(D)).ended
    assert 1 == ring.asked


async def test_an_end_comes_while_the_store_is_away(keys, ring, pulse):
    """A key that has ended is not good because nobody can be asked."""
    ring.keys[D] = Admitted(ApiKey(name="ann"), False, now() + AHEAD_S + 10)
    await keys.find(D)
    ring.away = True
    pass_time(11)
    answer = await keys.find(D)
    assert (True, True) == (answer.ended, answer.degraded)


async def test_closing_ends_what_is_under_way(ring, pulse):
    """No task is left."""
    keys = KnownKeys(ring, pulse)
    ring.gate = asyncio.Event()
    task = asyncio.ensure_future(keys.find(D))
    await asyncio.sleep(0)
    await keys.close()
    with pytest.raises(asyncio.CancelledError):
        await task
