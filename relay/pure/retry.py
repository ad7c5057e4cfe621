"""How many requests may be asked a second time: a share of all, so that retries cannot double a load that is too high.

A token bucket that every request feeds a little and every retry empties by one, as in Finagle's RetryBudget
(https://twitter.github.io/finagle/guide/Clients.html#retries); a trickle lets a relay with few requests retry too.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.2
TRICKLE_PER_S: Final = 1.0
FIRST: Final = 10.0
AT_MOST: Final = 100.0


class RetryBudget:
    """Times in seconds; the clock is the caller's."""

    __slots__ = ("_at", "_tokens")

    def __init__(self, now: float) -> None:
        self._tokens = FIRST
        self._at = now

    def earn(self, now: float) -> None:
        """A request has come."""
        waited, self._at = max(0.0, now - self._at), now
        self._tokens = min(AT_MOST, self._tokens + SHARE + TRICKLE_PER_S * waited)

    def spend(self) -> bool:
        """Whether a request may be asked once more; it counts as asked."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
