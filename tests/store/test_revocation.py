"""A key that is taken away in one process ends in all others, with the next beat of their pulses."""

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest

from relay.errors import Reject
from relay.exchange import CALLER
from relay.keyring import Keyring
from relay.keys import KeyChange, NewKey
from relay.store.pulse import beating
from relay.store.redis import RedisStore
from relay.testing.reply import Lent, exchange
from relay_plugins.auth import Auth

WHO = "cli:tester"
PATIENCE_S = 10.0


class Counting:
    """A store that counts the look-ups of keys."""

    def __init__(self, store):
        self._store = store
        self.key = store.key
        self.finds = 0

    def run(self, script, keys, args=()):
        self.finds += script.name == "keys_find"
        return self._store.run(script, keys, args)


class Process:
    """What a relay process has of its own: a store, a pulse, and `auth`."""

    async def start(self, stack, server):
        opened = RedisStore.on_socket(server)
        stack.push_async_callback(opened.aclose)
        self.store = Counting(opened)
        lent = Lent().services
        self.pulse = await stack.enter_async_context(beating(self.store, lent.log))
        services = SimpleNamespace(store=self.store, pulse=self.pulse, metrics=lent.metrics, log=lent.log)
        self.auth = Auth()
        await stack.enter_async_context(self.auth.lifespan(services))

    async def lets_in(self, secret):
        ex = exchange(headers={"Authorization": f"Bearer {secret.reveal()}"})
        try:
            await self.auth.on_request(ex)
        except Reject:
            return False
        assert "ann" == ex[CALLER]
        return True


@pytest.fixture
async def processes(store, server):
    """Two of them on one server."""
    async with AsyncExitStack() as stack:
        both = (Process(), Process())
        for process in both:
            await process.start(stack, server)
        yield both


async def until_refused(process, secret):
    async with asyncio.timeout(PATIENCE_S):
        while await process.lets_in(secret):
            await asyncio.sleep(0.01)


REVOKED = {
    "disabled": lambda ring: ring.change("ann", KeyChange(disabled=True), WHO),
    "deleted": lambda ring: ring.delete("ann", WHO),
    "rotated": lambda ring: ring.rotate("ann", 0, WHO),
}


@pytest.mark.parametrize("how", REVOKED)
async def test_revoked_everywhere(processes, store, how):
    """Whoever had let it in lets it in no more; between changes nobody asks the store."""
    ring = Keyring(store)
    issued = await ring.create(NewKey(name="ann"), WHO)
    for process in processes:
        async with asyncio.timeout(PATIENCE_S):
            while process.pulse.version != 1:
                await asyncio.sleep(0.01)
        for _ in range(50):
            assert await process.lets_in(issued.secret)
        assert 1 == process.store.finds
    await REVOKED[how](ring)
    await asyncio.gather(*(until_refused(process, issued.secret) for process in processes))
    assert [2, 2] == [process.store.finds for process in processes]


async def test_enabled_again_everywhere(processes, store):
    """A key that was refused is let in again, though that it was refused is remembered too."""
    ring = Keyring(store)
    issued = await ring.create(NewKey(name="ann"), WHO)
    await ring.change("ann", KeyChange(disabled=True), WHO)
    for process in processes:
        assert not await process.lets_in(issued.secret)
    await ring.change("ann", KeyChange(disabled=False), WHO)
    for process in processes:
        async with asyncio.timeout(PATIENCE_S):
            while not await process.lets_in(issued.secret):
                await asyncio.sleep(0.01)


async def test_a_new_key_works_at_once(processes, store):
    """Nobody waits for a beat: what is not known is asked for."""
    issued = await Keyring(store).create(NewKey(name="ann"), WHO)
    assert [True, True] == [await process.lets_in(issued.secret) for process in processes]
