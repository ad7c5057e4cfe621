"""Requests begin one by one where streams are open, in the order in which they came."""

import asyncio
from functools import partial

from relay.turnstile import QUIET_S, Turnstile


class Clock:
    """The loop, with a clock that is set."""

    def __init__(self):
        self.now = 100.0
        self.call_soon = asyncio.get_running_loop().call_soon

    def time(self):
        return self.now


def entered(turnstile, count):
    begun = []
    for number in range(count):
        turnstile.enter(partial(begun.append, number))
    return begun


async def test_one_a_turn_while_streams_are_open():
    turnstile = Turnstile(Clock())
    turnstile.stream_opened()
    begun = entered(turnstile, 5)
    for number in range(5):
        assert begun == list(range(number + 1))
        await asyncio.sleep(0)
    # And the next one has not to wait for those who were there before.
    await asyncio.sleep(0)
    assert [0] == entered(turnstile, 1)


async def test_nobody_overtakes():
    turnstile = Turnstile(Clock())
    turnstile.stream_opened()
    begun = []
    for number in range(3):
        turnstile.enter(partial(begun.append, number))
    await asyncio.sleep(0)
    turnstile.stream_closed()
    turnstile._loop.now += QUIET_S
    for number in range(3, 6):
        turnstile.enter(partial(begun.append, number))
    assert [0, 1] == begun
    for _ in range(6):
        await asyncio.sleep(0)
    assert begun == list(range(6))


async def test_at_once_where_nobody_streams():
    turnstile = Turnstile(Clock())
    assert entered(turnstile, 50) == list(range(50))


async def test_a_while_after_the_last_stream():
    """A hundred streams that end together are followed by a hundred requests."""
    turnstile = Turnstile(Clock())
    for _ in range(2):
        turnstile.stream_opened()
    for _ in range(2):
        turnstile.stream_closed()
    turnstile._loop.now += QUIET_S / 2
    begun = entered(turnstile, 3)
    assert [0] == begun
    for _ in range(4):
        await asyncio.sleep(0)
    assert [0, 1, 2] == begun
    turnstile._loop.now += QUIET_S / 2
    assert entered(turnstile, 50) == list(range(50))
