"""A relay that is killed at any point, and a store that is: afterwards the books say what was asked for and sent, once.

The relay kills itself where `RELAY_FAILPOINT` says (`relay.failpoint`), in the middle of its clients' requests. The next
one starts in the same folder, and the books are held against what clients and upstream have seen. `lives` says how.
"""

import asyncio
import os
import random
import signal

import pytest
from lives import (
    Clients,
    audit_of_killed,
    eventually,
    ledger_at,
    lives,
    outlive_its_store,
    settled,
    socket_of,
    write,
)
from redis.exceptions import RedisError

from relay.failpoint import FAILPOINTS
from relay.serve import allow_many_files
from relay.store.port import StoreError
from relay.testing import ScriptedUpstream

allow_many_files()

# Together they are all of them.
GROUPS = {
    "admission": ("before_reserve", "after_reserve", "before_upstream", "after_upstream"),
    "stream": ("mid_stream", "before_renew", "after_renew"),
    "end": ("before_settle", "after_settle", "journal_put", "journal_fsynced", "journal_replayed"),
}
# How often a point is passed at most before it kills: journals are used seldom.
PASSED = {**dict.fromkeys(FAILPOINTS, 15), "journal_put": 3, "journal_fsynced": 2, "journal_replayed": 8}


async def trouble(life, clients, chance):
    """The store stands still now and then, for longer than anybody waits for it, until the relay is gone."""
    server = life.server
    assert server
    while life.alive:
        # Streams are to be under way: what has sent nothing costs nothing.
        await eventually(lambda n=clients.whole: not life.alive or clients.whole > n + 5, "requests")
        if life.alive:
            os.kill(server, signal.SIGSTOP)
            try:
                await asyncio.sleep(chance.uniform(0.1, 0.25))
            finally:
                os.kill(server, signal.SIGCONT)


async def die_over_and_over(folder, points, seed):
    """One relay after the other, each killed at its point; what it left is looked at when the next one runs."""
    chance = random.Random(seed)
    clients = Clients(seed)
    async with lives() as start, ScriptedUpstream(clients.script) as upstream:
        write(folder, upstream.base_url)
        for deaths, point in enumerate(points):
            told = f"{point}:{chance.randint(1, PASSED[point])}"
            life = await start(folder, told)
            if not await survives(life, look_at_what_is_left(life, clients, points[:deaths])):
                continue
            async with clients.asking(life, until_broken=True):
                if point.startswith("journal"):
                    await trouble(life, clients, chance)
                await life.killed()
        life = await start(folder)
        await look_at_what_is_left(life, clients, points)
        async with clients.asking(life):
            await eventually(lambda n=clients.whole: clients.whole > n + 3, "the next requests")
        async with ledger_at(socket_of(life)) as ledger:
            await settled(ledger)
            await audit_of_killed(ledger, clients, len(points))
        await life.ends()
        assert [] == life.journals


async def survives(life, work):
    """Whether a relay lives until some work is done. It may be killed by taking over the journal of the one before."""
    working, dying = asyncio.create_task(work), asyncio.create_task(life.process.wait())
    await asyncio.wait((working, dying), return_when=asyncio.FIRST_COMPLETED)
    store_gone = working.done() and isinstance(working.exception(), StoreError | RedisError | OSError)
    if store_gone or not life.alive:
        working.cancel()
        await asyncio.wait((working, dying))
        await life.killed()
        return False
    dying.cancel()
    await working
    return True


async def look_at_what_is_left(life, clients, points):
    """points: at which relays died, so far."""
    try:
        async with ledger_at(socket_of(life)) as ledger:
            await settled(ledger)
            await eventually(lambda: not life.journals, "the journal's end")
            await audit_of_killed(ledger, clients, len(points))
    except BaseException as error:
        error.add_note(f"after the deaths at {points}; journals: {life.journals}; the log: {life.log}")
        raise


@pytest.mark.parametrize("group", GROUPS)
async def test_killed(tmp_path, group):
    """Two relays, in folders of their own, are killed at each point of the group."""
    assert set(FAILPOINTS) == {point for points in GROUPS.values() for point in points}
    async with asyncio.TaskGroup() as tasks:
        for number in range(2):
            points = random.Random(number).sample(GROUPS[group], len(GROUPS[group]))
            tasks.create_task(die_over_and_over(tmp_path / str(number), points, f"{group} {number}"))


@pytest.mark.long
@pytest.mark.parametrize("point", FAILPOINTS)
async def test_killed_fifty_times(tmp_path, point):
    """Two relays side by side, each killed and started again 25 times in its folder."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(2):
            tasks.create_task(die_over_and_over(tmp_path / str(number), [point] * 25, f"long {point} {number}"))


async def kill_its_store(folder, times, seed, on_store_failure):
    """The embedded server, which the relay starts again."""

    async def kill(life):
        server = life.server
        os.kill(server, signal.SIGKILL)
        await eventually(lambda: life.server not in (0, server), "the store's next start")

    life, clients = await outlive_its_store(folder, kill, times=times, seed=seed, on_store_failure=on_store_failure)
    assert times == len(life.lines("embedded store started again"))
    if on_store_failure == "open":
        assert all(asked.whole for all_asked in clients.asked.values() for asked in all_asked)


@pytest.mark.parametrize("on_store_failure", ["closed", "open"])
async def test_its_store_is_killed(tmp_path, on_store_failure):
    """Each request is charged to the character, whatever was booked when; where it may pass none is refused."""
    await kill_its_store(tmp_path, 3, on_store_failure, on_store_failure)


@pytest.mark.long
@pytest.mark.parametrize("on_store_failure", ["closed", "open"])
async def test_its_store_is_killed_fifty_times(tmp_path, on_store_failure):
    """Two relays side by side."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(2):
            tasks.create_task(kill_its_store(tmp_path / str(number), 25, f"{number}", on_store_failure))
