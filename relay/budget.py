"""Slots for calls, given out no faster than a pace allows, and to all streams alike.

While there are free slots nobody waits, and no task, timer or future is made. When there are none, those who wait queue
by stream, and the streams take turns: one that wants a hundred slots delays another that wants one by one. Before all
of them go those who have had their turn and could not use it (`again`): a call that failed and is asked once more.

Where processes share a moderator's account, the pace is that of `relay.account`, which leases slots in blocks.

One timer for all who wait. A slot is for the turn of the loop in which it was given; who cannot use it gives it back.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Final

from relay.account import Account
from relay.pure.pace import Pace

# uvloop rounds timers to milliseconds, to either side: one that goes off early would be set again and again.
TICK_S: Final = 0.001

_Queue = deque[asyncio.Future[bool]]


class Budget:
    """Slots for one moderator. `calls_per_second` may be infinite; that costs nothing.

    account: where slots come from; this process's own pace without one.
    waiting: how many wait. ceiling: `calls_per_second`.
    """

    def __init__(self, calls_per_second: float, account: Account | None = None) -> None:
        self.ceiling = calls_per_second
        self.waiting = 0
        self._loop = asyncio.get_running_loop()
        self._pace: Pace | Account | None = account
        if account is not None:
            account.serve(self._wake, lambda: self.waiting)
        elif math.isfinite(calls_per_second):
            self._pace = Pace(calls_per_second, self._loop.time())
        self._again: _Queue = deque()
        self._queues: dict[str, _Queue] = {}
        self._turns: deque[str] = deque()  # the streams that wait, the next one first
        self._timer: asyncio.TimerHandle | None = None

    @property
    def rate(self) -> float:
        """How many calls a second are allowed now."""
        return self._pace.rate(self._loop.time()) if self._pace is not None else math.inf

    @property
    def whole(self) -> float:
        """How many would be if nobody had said that there were too many; a little less than the ceiling."""
        return self._pace.whole if self._pace is not None else math.inf

    def try_take(self) -> bool:
        """A slot, if there is one and nobody waits for it."""
        if self._pace is None:
            return True
        return not self.waiting and self._pace.take(self._loop.time())

    async def take(self, stream: str, *, again: bool = False) -> bool:
        """A slot, as soon as it is this stream's turn. False if there will be none: `dismiss` was called."""
        if self.try_take():
            return True
        slot: asyncio.Future[bool] = self._loop.create_future()
        self._join(slot, None if again else stream)
        try:
            return await slot
        except asyncio.CancelledError:
            if slot.cancelled():
                self._leave(slot, None if again else stream)
            elif slot.result():
                # It was given in the same turn of the loop in which the task was cancelled.
                self.give_back()
            raise

    def give_back(self) -> None:
        """A slot that was not used."""
        if self._pace is not None:
            self._pace.give_back()
            self._wake()

    def hold(self) -> None:
        """A slot will be used later, as its owner waits for another one. Until `let_go` it takes up its place."""
        if self._pace is not None:
            self._pace.reserve()

    def let_go(self) -> None:
        """It is used now, or given back."""
        if self._pace is not None:
            self._pace.unreserve(self._loop.time())

    def refused(self) -> None:
        """The other side says that there were too many calls."""
        if self._pace is not None:
            self._pace.refused(self._loop.time())

    def dismiss(self) -> None:
        """Nobody gets a slot of those who wait now."""
        while self.waiting:
            slot = self._next()
            if not slot.done():
                slot.set_result(False)
        self._set_timer()

    def _join(self, slot: asyncio.Future[bool], stream: str | None) -> None:
        if stream is None:
            self._again.append(slot)
        elif stream in self._queues:
            self._queues[stream].append(slot)
        else:
            self._queues[stream] = deque([slot])
            self._turns.append(stream)
        self.waiting += 1
        self._set_timer()

    def _leave(self, slot: asyncio.Future[bool], stream: str | None) -> None:
        queue = self._again if stream is None else self._queues.get(stream, deque())
        if slot not in queue:
            return  # its turn came after it was cancelled, and was passed on
        queue.remove(slot)
        self.waiting -= 1
        if stream is not None and not queue:
            del self._queues[stream]
            self._turns.remove(stream)
        self._set_timer()

    def _next(self) -> asyncio.Future[bool]:
        """Who is first, taken out of the queue."""
        self.waiting -= 1
        if self._again:
            return self._again.popleft()
        stream = self._turns.popleft()
        queue = self._queues[stream]
        slot = queue.popleft()
        if queue:
            self._turns.append(stream)
        else:
            del self._queues[stream]
        return slot

    def _wake(self) -> None:
        """Give out what there is."""
        pace = self._pace
        assert pace is not None
        while self.waiting and pace.take(self._loop.time()):
            slot = self._next()
            if slot.done():  # cancelled, and its task has not heard of it yet
                pace.give_back()
            else:
                slot.set_result(True)
        self._set_timer()

    def _tick(self) -> None:
        self._timer = None
        self._wake()

    def _set_timer(self) -> None:
        if not self.waiting:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            assert self._pace is not None
            now = self._loop.time()
            ticks = math.ceil((self._pace.due(now) - now) / TICK_S - 1e-6)
            self._timer = self._loop.call_at(now + max(1, ticks) * TICK_S, self._tick)
