"""A moderator's account in the store: slots for calls, leased in blocks by all processes that use it.

There is no trip for a check. While there is demand one script runs every 20 ms or less often; it grants what flows into
the account meanwhile, to each process by its demand. A slot is good for 50 ms from when it was asked for; what is not used
then is given back with the next question. Counted where calls begin, no more than the account's calls begin in any second,
whatever processes there are.

When the service says that there were too many calls, that is told to the store: the rate falls for all processes.

While the store does not answer, or so late that its slots are no good any more, each process has its part of the calls,
paced here (`degraded`).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

from relay.pure.pace import BURST_S, JITTER_S, LEAST_RATE, LEAST_SHARE, RECOVERY_S, Pace
from relay.store.port import Script, Store, StoreError

LEASE: Final = Script("budget_lease")

BLOCK_S: Final = 0.05
"""How long a slot is good."""
GAP_S: Final = 0.02
"""Between two questions."""
RETRY_S: Final = 0.1
"""Until a store that did not answer is asked again."""


class Account:
    """Gives out slots as `relay.pure.pace.Pace` does. name: the account's, the same in all processes.

    calls_per_second: of all processes together, in any second. replicas: how many there are.
    degraded: the store was not to be had when it was last asked.
    """

    def __init__(self, store: Store, name: str, calls_per_second: float, replicas: Callable[[], int]) -> None:
        self.degraded = False
        self._store = store
        self._calls = calls_per_second
        self._replicas = replicas
        self._loop = asyncio.get_running_loop()
        tag = "budget:" + hashlib.sha256(name.encode()).hexdigest()[:32]
        self._keys = store.key(tag, "account"), store.key(tag, "processes")
        self._id = secrets.token_hex(8)
        calls = math.floor(calls_per_second) if calls_per_second >= 1 else calls_per_second
        burst = max(1, math.floor(calls * BURST_S))
        # What begins within a second was granted within it, or so long before as a slot is good.
        most = min(calls, calls - burst + 1) / (1 + BLOCK_S + JITTER_S)
        least = min(most, max(LEAST_RATE, calls * LEAST_SHARE))
        self._limits = (most, burst, least, calls / RECOVERY_S)
        self._burst = burst
        self._most = self._rate = most
        self._slots = 0  # below 0: calls that were made without one, to be made up for
        self._good_until = -math.inf
        self._unused = 0
        self._taken = 0  # since the store was asked
        self._refused = False
        self._asked_at = -math.inf
        self._asking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._here: Pace | None = None  # while the store is away
        self._reserved_here = 0
        self._wake: Callable[[], None] = lambda: None
        self._waiting: Callable[[], int] = lambda: 0

    def serve(self, wake: Callable[[], None], waiting: Callable[[], int]) -> None:
        """`wake` is called when there are new slots; `waiting` says how many wait for one."""
        self._wake = wake
        self._waiting = waiting

    async def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait((self._asking,))

    # What a budget asks for

    def take(self, now: float) -> bool:
        """Whether a call may be sent now; it counts as sent."""
        if self._here is not None:
            self._want(now)
            return self._here.take(now)
        self._expire(now)
        if self._slots < 1:
            self._want(now)
            return False
        self._slots -= 1
        self._taken += 1
        if self._slots < 1 or now >= self._asked_at + BLOCK_S / 2:
            self._want(now)  # for those who come next
        return True

    def give_back(self) -> None:
        """A call that was taken is not sent."""
        if self._here is not None:
            self._here.give_back()
        else:
            self._slots += 1

    def reserve(self) -> None:
        """A call that was taken is not sent at once. Others may have its slot; it takes another when it is sent."""
        if self._here is not None:
            self._here.reserve()
            self._reserved_here += 1
        else:
            self._slots += 1

    def unreserve(self, now: float) -> None:
        """It is sent now, or given back: with a slot, or without one, which is made up for by the next."""
        if self._here is None:
            self._expire(now)
            self._slots -= 1
        elif self._reserved_here:
            self._reserved_here -= 1
            self._here.unreserve(now)
        else:  # the store has gone meanwhile
            self._here.take(now)

    def due(self, now: float) -> float:
        """When it is worth looking again, if `wake` was not called until then."""
        if self._here is not None:
            return self._here.due(now)
        return now if self._slots >= 1 and now < self._good_until else now + RETRY_S

    def refused(self, now: float) -> None:
        """The other side says that there were too many."""
        if self._here is not None:
            self._here.refused(now)
        self._slots = min(0, self._slots)
        self._refused = True
        self._want(now)

    def rate(self, now: float) -> float:
        """How many calls a second all processes together are allowed now, as last heard; this one, without the store."""
        return self._rate if self._here is None else self._here.rate(now)

    @property
    def whole(self) -> float:
        """The same while nobody says that there were too many."""
        return self._most if self._here is None else self._here.whole

    # What the store is asked

    def _expire(self, now: float) -> None:
        if now >= self._good_until and self._slots > 0:
            self._unused += self._slots
            self._slots = 0

    def _want(self, now: float) -> None:
        """Ask for more, as soon as that may be."""
        if self._asking is None and self._timer is None:
            gap = GAP_S if self._here is None else RETRY_S
            self._timer = self._loop.call_at(max(now, self._asked_at + gap), self._ask)

    def _ask(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._expire(now)
        want = min(self._burst, self._waiting() + self._taken - min(0, self._slots))
        if want <= 0 and not self._refused:
            return
        arguments = (self._id, max(0, want), min(self._unused, self._burst), int(self._refused), *self._limits)
        self._asked_at, self._taken, self._unused, self._refused = now, 0, 0, False
        self._asking = self._loop.create_task(self._hear(self._store.run(LEASE, self._keys, arguments), now))

    async def _hear(self, asked: Awaitable[Any], sent_at: float) -> None:
        try:
            granted, thousandths = await asked
        except StoreError:
            granted = None
        finally:
            self._asking = None
        if granted is None or self._loop.time() >= sent_at + BLOCK_S:
            self._fall_back(self._loop.time())
        else:
            self._rate = thousandths / 1000
            self._here, self.degraded = None, False
            # Each question is for all that is wanted, so what is left of the last answer is too much.
            self._unused += max(0, self._slots)
            self._slots = granted + min(0, self._slots)
            self._good_until = sent_at + BLOCK_S
        if self._waiting():
            self._want(self._loop.time())
        self._wake()

    def _fall_back(self, now: float) -> None:
        """Each process has its part, and nothing at once: what was granted a moment ago is in use."""
        if self._here is None:
            self._here = Pace(self._calls / self._replicas(), now)
            self._reserved_here = 0
            while self._here.take(now):
                pass
        self._slots = self._unused = 0
        self.degraded = True
