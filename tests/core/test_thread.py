"""What blocks in a thread holds up nobody's end."""

import asyncio
import threading

import pytest

from relay.thread import Thread, aside


def named(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


async def ended(name):
    async with asyncio.timeout(10):
        while named(name):
            await asyncio.sleep(0.001)


async def test_in_order():
    """One after the other, in one thread, which the end of the process does not wait for."""
    thread, order = Thread("in order"), []
    await asyncio.gather(*(thread.run(order.append, number) for number in range(20)))
    assert [*range(20)] == order
    [running] = named("in order")
    assert running.daemon
    thread.stop(lambda: order.append("last"))
    await ended("in order")
    assert "last" == order[-1]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
async def test_what_it_raises(error):
    def work():
        raise error("no")

    with pytest.raises(error, match="no"):
        await aside("raises", work)
    await ended("raises")


async def test_what_is_not_waited_for():
    """It goes on, its end is nobody's; what had not begun never does."""
    begun, free, done = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        free.wait(10)
        done.append("first")

    thread = Thread("hangs")
    first, second = (asyncio.create_task(thread.run(each)) for each in (work, lambda: done.append("second")))
    await asyncio.to_thread(begun.wait, 10)
    for task in (first, second):
        task.cancel()
    await asyncio.wait((first, second))
    thread.stop()
    assert first.cancelled()
    assert second.cancelled()
    free.set()
    await ended("hangs")
    assert ["first"] == done
