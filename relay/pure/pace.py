"""How fast calls may follow one another: a rate with a small burst, which falls when the other side says "too many".

A token bucket with `b` places, filled at the rate `r`: in less than T seconds no more than b + rT calls begin. `r` is
chosen so that this is less than one call more than allowed. A twentieth of a second's calls may come at once, which is
enough to even out the turns of a loop.

The rate follows AIMD, as TCP does (Chiu and Jain, 1989): times 0.7 at a refusal, at most once a second, and after a
second without one up again, by a twentieth of the whole each second. So relays that share an account without knowing
of each other find shares that fit into it.

Times in seconds, the clock is the caller's.
"""

from __future__ import annotations

import math
from typing import Final

BURST_S: Final = 0.05
# Between a slot and the other side's clock lie a turn of our loop and the network, and not always as much of them: what
# leaves within 1.02 s may arrive within one second.
JITTER_S: Final = 0.02

FALL: Final = 0.7
FALL_EVERY_S: Final = 1.0
RECOVERY_S: Final = 20.0  # from nothing to the whole rate
# The rate does not fall below the greater of these two, calls a second and a share of the whole.
LEAST_RATE: Final = 1.0
LEAST_SHARE: Final = 0.05

# A call but for the rounding of sums is a call; else a timer would be set for a time that is no later than now.
_ROUNDING: Final = 1e-9


class Pace:
    """At most `calls_per_second` calls in any second, a positive finite number."""

    __slots__ = ("_at", "_burst", "_fell_at", "_least", "_most", "_rate", "_recovery", "_reserved", "_tokens")

    def __init__(self, calls_per_second: float, now: float) -> None:
        calls = math.floor(calls_per_second) if calls_per_second >= 1 else calls_per_second
        self._burst = max(1, math.floor(calls * BURST_S))
        self._most = min(calls, calls - self._burst + 1) / (1 + JITTER_S)
        self._least = min(self._most, max(LEAST_RATE, calls * LEAST_SHARE))
        self._recovery = calls / RECOVERY_S
        self._rate = self._most
        self._tokens = float(self._burst)
        self._reserved = 0
        self._at = now
        self._fell_at = -math.inf

    def take(self, now: float) -> bool:
        """Whether a call may be sent now; it counts as sent."""
        self._refill(now)
        if self._tokens < 1 - _ROUNDING:
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        """A call that was taken is not sent."""
        self._tokens = min(self._room, self._tokens + 1)

    def reserve(self) -> None:
        """A call that was taken is not sent at once: until `unreserve` there is room for one less beside it."""
        self._reserved += 1

    def unreserve(self, now: float) -> None:
        """It is sent now, or given back."""
        self._refill(now)  # with the room that there was until now
        self._reserved -= 1

    def due(self, now: float) -> float:
        """When the next call may be sent, as far as is known now."""
        self._refill(now)
        return now + max(0.0, 1 - self._tokens) / self._rate

    def refused(self, now: float) -> None:
        """The other side says that there were too many."""
        self._refill(now)
        self._tokens = min(0.0, self._tokens)
        if now >= self._fell_at + FALL_EVERY_S:
            self._rate = max(self._least, self._rate * FALL)
            self._fell_at = now

    @property
    def whole(self) -> float:
        """How many calls a second are allowed while nobody says that there were too many."""
        return self._most

    def rate(self, now: float) -> float:
        """How many calls a second are allowed now, in the long run."""
        if self._rate == self._most:
            return self._most
        recovering_s = max(0.0, now - max(self._at, self._fell_at + FALL_EVERY_S))
        return min(self._most, self._rate + self._recovery * recovering_s)

    @property
    def _room(self) -> float:
        return float(self._burst - self._reserved)

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self._room, self._tokens + self._rate * (now - self._at))
            self._rate = self.rate(now)
            self._at = now
