"""When a service is left alone for a while: a circuit breaker, as in Nygard's "Release It!".

Closed, every call may go. It opens for one of two reasons:

* Silence: several calls in a row have failed, and nothing was answered for a while (`SILENCES`). That is a service that
  is down, found out within the time of a few calls; of calls that fail now and then many others are answered meanwhile.
* Share: of the calls that ended in the last ten seconds half or more have failed.

Open, no call may go: nobody waits for a time-out that is sure to come. After a second one call goes as the probe. Its
answer closes the breaker; its failure opens it again, for twice as long each time, ten seconds at most.

A call that takes too long is cut off by its caller and has failed, so a slow service is one that fails. Calls that
fail at random, one in a hundred, hardly ever open it: half of twenty have failed once in 6·10¹⁴ calls; a silence comes at one
call a second, which suits it best, once in five years, at ten once in a thousand, and above that not at all.

Times in seconds, the clock is the caller's.
"""

from __future__ import annotations

import math
from typing import Final, Literal

State = Literal["closed", "probing", "open"]

# So many failures in a row, and so many seconds without an answer. One call at a time that is cut off after a second
# each has four after four seconds; many at a time have five at once.
SILENCES: Final = ((5, 1.0), (4, 3.0))
SHARE: Final = 0.5
LEAST_CALLS: Final = 20
SPAN_S: Final = 10

FIRST_OPEN_S: Final = 1.0
MAX_OPEN_S: Final = 10.0
# Who has been closed for so long is well: the next time to be open is the first one again.
WELL_S: Final = 10.0

NO_TICKET: Final = 0


class Breaker:
    """A call asks with `enter` and tells with its ticket how it went, by exactly one of the four that take it.

    What calls tell that were under way when the breaker opened says nothing new, and is ignored.
    """

    __slots__ = (
        "_answered", "_answered_at", "_closed_at", "_failed", "_first_open_s", "_in_a_row", "_max_open_s", "_open_s",
        "_over_at", "_second", "_silences", "_ticket", "state",
    )  # fmt: skip

    def __init__(
        self,
        *,
        silences: tuple[tuple[int, float], ...] = SILENCES,
        first_open_s: float = FIRST_OPEN_S,
        max_open_s: float = MAX_OPEN_S,
    ) -> None:
        self._silences = silences
        self._first_open_s = first_open_s
        self._max_open_s = max_open_s
        self.state: State = "closed"
        self._ticket = NO_TICKET + 1  # of all calls since the last change
        self._over_at = 0.0  # when it has been open for long enough
        self._open_s = first_open_s
        self._closed_at = -math.inf
        self._answered_at = -math.inf
        self._in_a_row = 0
        # By the second in which they ended, the newest in place `_second % SPAN_S`.
        self._second = 0
        self._answered = [0] * SPAN_S
        self._failed = [0] * SPAN_S

    def allows(self, now: float) -> bool:
        """Whether a call may go now."""
        return self.state == "closed" or (self.state == "open" and now >= self._over_at)

    def enter(self, now: float) -> int:
        """The ticket of a call that goes now; NO_TICKET, which is 0, if it may not."""
        if self.state == "closed":
            return self._ticket
        if not self.allows(now):
            return NO_TICKET
        return self._change("probing")

    def answered(self, ticket: int, now: float) -> bool:
        """A call was answered. Returns whether that closes the breaker."""
        if ticket != self._ticket:
            return False
        probe = self.state == "probing"
        if probe:
            self._forget()
            self._closed_at = now
            self._change("closed")
        self._answered_at = now
        self._in_a_row = 0
        self._answered[self._place(now)] += 1
        return probe

    def failed(self, ticket: int, now: float) -> bool:
        """A call was not answered. Returns whether that opens the breaker, which it also does if a probe fails."""
        if ticket != self._ticket:
            return False
        self._in_a_row += 1
        self._failed[self._place(now)] += 1
        if self.state == "probing" or self._is_silent(now) or self._is_failing():
            self._open(now)
            return True
        return False

    def refused(self, ticket: int, now: float) -> bool:
        """A call was answered that no call will be, for the time being. Returns whether that opens the breaker."""
        if ticket != self._ticket:
            return False
        self._open(now)
        return True

    def abandoned(self, ticket: int) -> None:
        """A call was given up before its end; if it was the probe, the next one is."""
        if ticket == self._ticket and self.state == "probing":
            self._change("open")

    def _open(self, now: float) -> None:
        if self.state == "closed" and now - self._closed_at >= WELL_S:
            self._open_s = self._first_open_s
        self._over_at = now + self._open_s
        self._open_s = min(self._max_open_s, 2 * self._open_s)
        self._change("open")

    def _change(self, state: State) -> int:
        self.state = state
        self._ticket += 1
        return self._ticket

    def _is_silent(self, now: float) -> bool:
        return any(self._in_a_row >= calls and now - self._answered_at >= seconds for calls, seconds in self._silences)

    def _is_failing(self) -> bool:
        failed = sum(self._failed)
        calls = failed + sum(self._answered)
        return calls >= LEAST_CALLS and failed >= SHARE * calls

    def _place(self, now: float) -> int:
        """Where the calls of this second are counted; what is older than the span is forgotten."""
        second = int(now)
        if second > self._second:
            for passed in range(max(self._second + 1, second - SPAN_S + 1), second + 1):
                self._answered[passed % SPAN_S] = self._failed[passed % SPAN_S] = 0
            self._second = second
        return second % SPAN_S

    def _forget(self) -> None:
        self._in_a_row = 0
        self._answered = [0] * SPAN_S
        self._failed = [0] * SPAN_S
