"""How late the loop is."""

import asyncio
import time

import pytest

from relay.lag import lag_told


async def test_a_loop_that_was_held_up():
    """Somebody blocks it for 50 ms: the call that was due meanwhile is so late."""
    heard = []
    told = asyncio.Event()

    def tell(seconds):
        heard.append(seconds)
        told.set()

    async with lag_told(tell, 0.001):
        await told.wait()
        heard.clear()
        time.sleep(0.05)  # this is what is measured
        told.clear()
        await told.wait()
    assert max(heard) >= 0.045
    assert min(heard) >= 0


async def test_nobody_is_told_afterwards():
    """With the block the timer is gone, also when the block ends by an error."""
    heard = []

    async def fail():
        async with lag_told(heard.append, 0.0):
            while not heard:
                await asyncio.sleep(0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    heard.clear()
    for _ in range(10):
        await asyncio.sleep(0)
    assert heard == []
