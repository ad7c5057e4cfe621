"""Whether an upstream should be asked now, learnt from the requests that it gets anyway.

This is outlier detection as Envoy has it (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier),
without the statistics: five failures in a row eject an upstream, for five seconds at first and twice as long each time
that it comes back no better. When the time is over one request is the probe, and others follow if that is answered.

Three things are counted apart, because one can be well while another is not: heads that do not come, replies that break
off, and heads that take several times as long as another upstream's of the same model. Times are in seconds, the clock
is the caller's.
"""

from __future__ import annotations

from typing import Final, Literal

Reason = Literal["heads", "replies", "slow"]
REASONS: Final[tuple[Reason, ...]] = ("heads", "replies", "slow")

FAILURES: Final = 5
EJECTED_S: Final = 5.0
EJECTED_AT_MOST_S: Final = 60.0
# A probe whose client leaves tells nothing; then another request may be the next.
PROBE_S: Final = 5.0

# A head is slow that takes so many times another upstream's usual time, and longer than people notice.
SLOW_FACTOR: Final = 4.0
SLOW_S: Final = 2.0
SLOW_HEADS: Final = 10
# How much the newest of the times counts, and how many make a usual one.
_WEIGHT: Final = 0.1
_SAMPLES: Final = 10


class Health:
    """What is known of one upstream."""

    __slots__ = ("_broken", "_ejections", "_failed", "_heads", "_mean_s", "_probing", "_slow", "_until", "ejected")

    def __init__(self) -> None:
        self.ejected = False
        self._until = 0.0  # when it may be asked again
        self._probing = False
        self._ejections = 0  # in a row, without a reply that ended well in between
        self._failed = self._broken = self._slow = 0  # each in a row
        self._heads = 0
        self._mean_s = 0.0

    @property
    def usual_s(self) -> float | None:
        """How long its heads take; None while too few have been seen."""
        return self._mean_s if self._heads >= _SAMPLES else None

    def ready(self, now: float) -> bool:
        """Whether it should be asked before one that is not ready."""
        return not self.ejected or now >= self._until

    def asked(self, now: float) -> None:
        """A request goes to it. One that is ejected gets no other until this one has ended, or has had its time."""
        if self.ejected:
            self._probing = True
            self._until = max(self._until, now + PROBE_S)

    def answered(self, now: float, took_s: float | None = None, usual_s: float | None = None) -> Reason | None:
        """A head has come. Returns why it is ejected, if it is now.

        took_s: how long it took, if that says something; usual_s: what is usual for another upstream.
        """
        self._failed = 0
        self.ejected = self._probing = False
        if took_s is None:
            return None
        self._heads += 1
        self._mean_s += (took_s - self._mean_s) * max(_WEIGHT, 1 / self._heads)
        if usual_s is None or took_s <= max(SLOW_S, SLOW_FACTOR * usual_s):
            self._slow = 0
            return None
        self._slow += 1
        return self._eject(now, "slow") if self._slow >= SLOW_HEADS else None

    def failed(self, now: float) -> Reason | None:
        """No head came, or one that says that the upstream cannot serve. Returns why it is ejected, if it is now."""
        if self.ejected:
            # Requests that were under way when it was ejected prove nothing new; the probe does.
            return self._eject(now, "heads") if self._probing else None
        self._failed += 1
        return self._eject(now, "heads") if self._failed >= FAILURES else None

    def broke_off(self, now: float) -> Reason | None:
        """A reply has broken off. Returns why it is ejected, if it is now."""
        if self.ejected:
            return self._eject(now, "replies") if self._probing else None
        self._broken += 1
        return self._eject(now, "replies") if self._broken >= FAILURES else None

    def served(self) -> None:
        """A reply has ended well."""
        self._broken = 0
        if not self._slow and not self.ejected:
            self._ejections = 0

    def _eject(self, now: float, reason: Reason) -> Reason:
        self.ejected, self._probing = True, False
        self._failed = self._broken = self._slow = 0
        self._until = now + min(EJECTED_AT_MOST_S, EJECTED_S * 2.0 ** min(self._ejections, 10))
        self._ejections += 1
        return reason
