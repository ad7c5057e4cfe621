"""A loop whose clock jumps: time passes only when there is nothing else to do, and then at once, to the next timer.

What waits for seconds is tested in microseconds, and every time is exact::

    async def an_hour() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert jump(an_hour()) == START_S + 3600

Sockets and threads work, but what comes from them comes at no particular time: a loop that waits for an answer from
outside beside a timer lets the timer win.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

# Any but 0, which a sum that was forgotten would be.
START_S = 1000.0
# Real seconds to wait for the world outside when there is no timer; then nothing is ever going to happen.
PATIENCE_S = 10.0


T = TypeVar("T")


def jump(work: Coroutine[Any, Any, T]) -> T:
    """Run it on such a loop; what it returns."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


class JumpingLoop(asyncio.SelectorEventLoop):
    """See the head of this file."""

    def __init__(self) -> None:
        self._now = START_S
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        self._now += seconds


class _Selector(selectors.DefaultSelector):
    """Asks once, and then has the clock moved instead of waiting."""

    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(PATIENCE_S if timeout is None else 0)
        if not ready and timeout is None:
            raise RuntimeError("the loop waits, and nothing is left that could happen")
        if not ready and timeout is not None:
            self._loop.jump(timeout)
        return ready
