"""How many requests may be asked a second time: a share of all, so that retries cannot double a load that is too high.

A token bucket that every request feeds a little and every retry empties by one, as in Finagle's RetryBudget
(https://twitter.github.io/finagle/guide/Clients.html#retries); a trickle lets a relay with few requests retry too.
"""

from __future__ import annotations

from typing import Final

RETRY_RATIO: Final = 0.2
MIN_RETRIES_PER_S: Final = 1.0
# A restart of the relay must not fall together with an upstream that nobody may be asked after; and what was saved up in
# an hour of quiet must not all be spent at once.
INITIAL_TOKENS: Final = 10.0
MAX_TOKENS: Final = 100.0


class RetryBudget:
    """Times in seconds; the clock is the caller's."""

    __slots__ = ("_at", "_tokens")

    def __init__(self, now: float) -> None:
        self._tokens = INITIAL_TOKENS
        self._at = now

    def earn(self, now: float) -> None:
        """A request has come."""
        waited, self._at = now - self._at, now
        tokens = self._tokens + RETRY_RATIO + (MIN_RETRIES_PER_S * waited if waited > 0 else 0.0)
        self._tokens = tokens if tokens < MAX_TOKENS else MAX_TOKENS

    def spend(self) -> bool:
        """Whether a request may be asked once more; it counts as asked."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
