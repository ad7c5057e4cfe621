"""An amount a minute, whatever is taken at once: tokens, characters. A sliding window, counted in slots.

What was taken counts for at least a minute and at most for one slot more, so in no minute more is taken than the limit.
What is taken is often an estimate: it can be corrected where it was taken, as if it had been right from the beginning.
That is why this is no bucket: of what a bucket was charged a minute ago, nobody knows how much has come back meanwhile.

`relay/store/lua/limits_take.lua` does the same in a store.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec.structs import replace

from relay.pure.bucket import Decision

SLOT_S: Final = 5.0
SLOTS: Final = 12  # of a minute

Taken = dict[int, int]
"""Of one caller: how much was taken in each slot. Empty at the beginning."""


class SlidingWindow:
    """At most `limit` in any minute. Knows no callers: what they took is kept elsewhere. `now` is any clock's seconds."""

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def look(self, taken: Taken, now: float, share: int = 0) -> Decision:
        """Whether a share of this size may be taken, which is no more than the limit; and how the caller stands before."""
        here = slot_of(now)
        for slot in [slot for slot in taken if abs(slot - here) > SLOTS]:
            del taken[slot]
        left, wait, reset = sum(taken.values()), 0.0, 0.0
        allowed, remaining = left + share <= self.limit, max(0, self.limit - left)
        for slot in sorted(taken):
            free = (slot + SLOTS + 1) * SLOT_S - now
            if left + share > self.limit:
                wait = free
            left -= taken[slot]
            reset = free
        return Decision(allowed, self.limit, remaining, wait, reset)

    def take(self, taken: Taken, now: float, share: int) -> Decision:
        """Take it, whether or not there is room; how the caller stands afterwards."""
        add(taken, now, share)
        return replace(self.look(taken, now), allowed=True, retry_after_s=0.0)


def add(taken: Taken, now: float, amount: int) -> None:
    if amount > 0:
        slot = slot_of(now)
        taken[slot] = taken.get(slot, 0) + amount


def correct(taken: Taken, then: float, took: int, used: int, now: float) -> None:
    """What was taken at `then` was an estimate: `used` was used.

    What was not used is given back where it was taken, if that counts still; what was used beyond is taken now.
    """
    if used > took:
        add(taken, now, used - took)
    elif (slot := slot_of(then)) in taken:
        taken[slot] -= min(taken[slot], took - used)
        if not taken[slot]:
            del taken[slot]


def slot_of(now: float) -> int:
    return math.floor(now / SLOT_S)
