import asyncio

import pytest

from relay.testing.clock import START_S, JumpingLoop


def test_a_long_time_is_short() -> None:
    """Timers go off in their order, each at its time, and nobody waits for them."""
    loop, seen = JumpingLoop(), []

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((seconds, loop.time()))

    async def run() -> None:
        await asyncio.gather(sleep(86_400), sleep(0.001), sleep(5))

    loop.run_until_complete(run())
    loop.close()
    assert seen == [(seconds, START_S + seconds) for seconds in (0.001, 5, 86_400)]


def test_threads_are_waited_for() -> None:
    """Where there is no timer the loop waits for the world outside."""
    loop = JumpingLoop()
    assert loop.run_until_complete(asyncio.to_thread(sum, [1, 2])) == 3
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_a_dead_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would wait for ever says so."""
    monkeypatch.setattr("relay.testing.clock.PATIENCE_S", 0.01)
    loop = JumpingLoop()
    never = loop.create_future()
    with pytest.raises(RuntimeError, match="nothing is left"):
        loop.run_until_complete(never)
    loop.close()


@pytest.mark.jumping_clock
async def test_by_a_marker() -> None:
    assert isinstance(asyncio.get_running_loop(), JumpingLoop)


async def test_and_not_without_it() -> None:
    assert not isinstance(asyncio.get_running_loop(), JumpingLoop)
