"""How late the loop is: what everybody waits besides, and the first sign of a plugin that blocks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic


@asynccontextmanager
async def lag_told(tell: Callable[[float], None], period_s: float) -> AsyncIterator[None]:
    """While the block runs, `tell` hears every `period_s` by how many seconds the loop was late to call it."""
    loop = asyncio.get_running_loop()
    handle: asyncio.TimerHandle

    def called(due: float) -> None:
        nonlocal handle
        tell(max(0.0, monotonic() - due))
        handle = loop.call_later(period_s, called, monotonic() + period_s)

    # Not by the loop's own clock: uvloop's stands still while callbacks run.
    handle = loop.call_later(period_s, called, monotonic() + period_s)
    try:
        yield
    finally:
        handle.cancel()
