"""A rate of requests and a burst: the generic cell rate algorithm (GCRA).

All that is kept of a caller is one number, the *theoretical arrival time* (TAT): when its next request would arrive if
all so far had come evenly spaced. A request passes as long as this lies no more than a burst ahead of the clock, and
puts it one interval further. So there is no window whose edges could be used twice, and nothing runs when nobody asks.

Source: ITU-T I.371 (03/2004), annex A.1, "virtual scheduling algorithm"; its tolerance τ is here `burst - 1` intervals.

The TAT is kept in intervals, not in seconds: for 600 requests a minute an interval is 0.1 s, which no float holds, and
the last request of a burst would pass or not as sums happen to be rounded. Counted in intervals a request is exactly 1.
The clock is read in steps of `1 / STEPS` of an interval; then all sums are exact.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

STEPS: Final = 2**20

NEVER: Final = -math.inf
"""The TAT of a caller who has not asked yet."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What became of a request, and how its caller stands after it.

    limit: how many may come at once. remaining: how many more may come now.
    retry_after_s: how long to wait until one passes; 0 if it has. reset_s: how long until `limit` may come at once again.
    """

    allowed: bool
    limit: int
    remaining: int
    retry_after_s: float
    reset_s: float


class Bucket:
    """`requests` every `period_s` seconds, and `burst` at once. Knows no callers: their TATs are kept elsewhere.

    `now` is any clock's seconds, from 0 on. If it goes back, nobody gains by it: whoever has used up his burst waits
    until it has come forward again.
    """

    __slots__ = ("_per_s", "_steps_per_s", "burst")

    def __init__(self, requests: int, period_s: float, burst: int) -> None:
        self.burst = burst
        self._per_s = requests / period_s
        self._steps_per_s = self._per_s * STEPS

    def ask(self, tat: float, now: float) -> tuple[Decision, float]:
        """Whether a request may pass, and the TAT after it. One that may not changes nothing."""
        at = now * self._steps_per_s // 1 / STEPS  # as `_intervals` says
        burst = self.burst
        if at < tat - (burst - 1):
            return self._refused(tat, now), tat
        tat = (tat if tat > at else at) + 1
        ahead = tat - at
        return Decision(True, burst, burst - math.ceil(ahead), 0.0, ahead / self._per_s), tat

    def passes(self, tat: float, now: float) -> bool:
        """Whether `ask` would let a request pass."""
        return self._intervals(now) >= tat - (self.burst - 1)

    def look(self, tat: float, now: float) -> Decision:
        """What `ask` would say, without asking: `remaining` and `reset_s` are as they stand."""
        at = self._intervals(now)
        if at < tat - (self.burst - 1):
            return self._refused(tat, now)
        return self._stands(True, tat, at)

    def is_full(self, tat: float, now: float) -> bool:
        """Whether this caller stands as one who has never asked, and may be forgotten."""
        return tat <= self._intervals(now)

    def moved(self, tat: float, now: float, to: Bucket) -> float:
        """The TAT of the same caller by another bucket: as many of its requests have not come back."""
        return to._intervals(now) + max(0.0, tat - self._intervals(now)) if tat != NEVER else NEVER

    def _intervals(self, now: float) -> float:
        return now * self._steps_per_s // 1 / STEPS  # no float has to become a whole number of Python's for that

    def _stands(self, allowed: bool, tat: float, at: float, retry_after_s: float = 0.0) -> Decision:
        ahead = tat - at if tat > at else 0.0
        left = self.burst - math.ceil(ahead)
        return Decision(allowed, self.burst, left if left > 0 else 0, retry_after_s, ahead / self._per_s)

    def _refused(self, tat: float, now: float) -> Decision:
        needed = tat - (self.burst - 1)
        then = needed / self._per_s
        # The quotient and the sum of whoever waits are rounded: a few steps up, and coming back then is not too early.
        while self._intervals(then) < needed:
            then = math.nextafter(then, math.inf)
        wait = then - now
        while now + wait < then:
            wait = math.nextafter(wait, math.inf)
        return self._stands(False, tat, self._intervals(now), wait)
