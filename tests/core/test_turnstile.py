"""Requests begin in the order in which they came, one in a turn where streams are open, by eights where none are."""

import asyncio
from functools import partial

from relay.turnstile import AMONG_NONE, CALM_S, QUIET_S, START_S, Turnstile


class Clock:
    """The loop, with a clock that is set."""

    def __init__(self):
        self.now = 100.0
        self.call_soon = asyncio.get_running_loop().call_soon

    def time(self):
        return self.now


def made():
    clock = Clock()
    return Turnstile(clock, clock.time), clock


def entered(turnstile, count):
    begun = []
    for number in range(count):
        turnstile.enter(partial(begun.append, number))
    return begun


async def test_one_a_turn_while_streams_are_open():
    turnstile, _ = made()
    turnstile.stream_opened()
    begun = entered(turnstile, 5)
    for number in range(5):
        assert begun == list(range(number + 1))
        await asyncio.sleep(0)
    # And the next one has not to wait for those who were there before.
    await asyncio.sleep(0)
    assert [0] == entered(turnstile, 1)


async def test_nobody_overtakes():
    turnstile, clock = made()
    turnstile.stream_opened()
    begun = []
    for number in range(3):
        turnstile.enter(partial(begun.append, number))
    await asyncio.sleep(0)
    turnstile.stream_closed()
    clock.now += QUIET_S
    for number in range(3, 6):
        turnstile.enter(partial(begun.append, number))
    assert [0, 1] == begun
    for _ in range(6):
        await asyncio.sleep(0)
    assert begun == list(range(6))


async def test_by_eights_where_nobody_streams():
    turnstile, _ = made()
    begun = entered(turnstile, 50)
    for turn in range(1, 8):
        assert begun == list(range(min(50, turn * AMONG_NONE)))
        await asyncio.sleep(0)
    # And those who come later begin at once.
    await asyncio.sleep(0)
    assert entered(turnstile, AMONG_NONE) == list(range(AMONG_NONE))


async def test_a_while_after_the_last_stream():
    """A hundred streams that end together are followed by a hundred requests."""
    turnstile, clock = made()
    for _ in range(2):
        turnstile.stream_opened()
    for _ in range(2):
        turnstile.stream_closed()
    clock.now += QUIET_S / 2
    begun = entered(turnstile, 3)
    assert [0] == begun
    for _ in range(4):
        await asyncio.sleep(0)
    assert [0, 1, 2] == begun
    clock.now += QUIET_S / 2
    assert entered(turnstile, AMONG_NONE) == list(range(AMONG_NONE))


async def test_more_after_a_turn_that_took_long():
    """Who waits to begin has his share of the time, however many events come."""
    turnstile, clock = made()
    turnstile.stream_opened()
    begun = entered(turnstile, 9)
    clock.now += CALM_S + 2.5 * START_S
    await asyncio.sleep(0)
    assert [0, 1, 2, 3] == begun
    clock.now += CALM_S - START_S
    await asyncio.sleep(0)
    assert [0, 1, 2, 3, 4] == begun
    clock.now += 100 * START_S
    await asyncio.sleep(0)
    assert begun == list(range(9))
    # What was left of that turn is nobody's.
    for _ in range(2):
        await asyncio.sleep(0)
    assert [0] == entered(turnstile, 9)


async def test_one_that_raises_holds_nobody_up():
    turnstile, _ = made()
    turnstile.stream_opened()
    begun = []
    turnstile.enter(partial(begun.append, 0))
    turnstile._waiting.append(lambda: 1 / 0)
    turnstile.enter(partial(begun.append, 1))
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    for _ in range(4):
        await asyncio.sleep(0)
    assert [0, 1] == begun
    assert [ZeroDivisionError] == [type(each) for each in told]


async def test_what_is_ready_leaves_before_those_who_begin():
    """In the turn in which they were let in, and in each in which somebody is."""
    done = []
    loop = asyncio.get_running_loop()
    turnstile = Turnstile(loop, Clock().time, before=lambda: done.append("left"))
    turnstile.stream_opened()
    for number in range(2):
        turnstile.enter(partial(loop.call_soon, done.append, number))
    for _ in range(3):
        await asyncio.sleep(0)
    assert ["left", 0, "left", 1] == done
