"""Notices, in an allowed rate that is looked at now and then, when it falls and when it is whole again.

What is told is the rate before and now: at each fall, by more than rounding; and once when it is what it would be if nobody
had complained. The climb in between is not worth an event.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# Of the whole. Rates that come from a store are rounded; a refusal takes three tenths.
_ROUNDING: Final = 0.005


class Change(NamedTuple):
    """Calls a second that were allowed, and are."""

    before: float
    now: float


class Throttle:
    """Starts with a rate that is whole."""

    __slots__ = ("_fallen", "_rate", "_share")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._share = 1.0
        self._fallen = False

    def look(self, rate: float, whole: float) -> Change | None:
        """What is to be told, if anything. whole: what the rate would be if nobody had complained; positive."""
        if rate == self._rate:
            return None
        share = rate / whole
        before, self._rate = self._rate, rate
        fell = share < self._share - _ROUNDING
        self._share = share
        if fell:
            self._fallen = True
            return Change(before, rate)
        if self._fallen and share >= 1 - _ROUNDING:
            self._fallen = False
            return Change(before, rate)
        return None
