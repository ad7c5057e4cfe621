"""What is counted of moderation: of requests and replies, in one tally each; of the calls to moderators, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from relay.metrics import families
from relay.metrics.collectors import Counter, Histogram, Series, counters, gauges, histogram, histograms, within
from relay.metrics.families import BREAKER_STATES, CHARACTERS, CHECKS, OTHER, UNVERIFIED


@dataclass(slots=True, kw_only=True)
class ModerationTally:
    """What moderation did to one request and its reply; counted up in place and handed over once.

    The first five are characters (`CHARACTERS`); the keys of `unverified` are from `UNVERIFIED`, those of `checks` are
    (moderator, one of `CHECKS`), those of `violations` are (moderator, its label).
    """

    came: int = 0
    checked: int = 0
    released: int = 0
    withheld: int = 0
    blocked: int = 0
    unverified: dict[str, int] = field(default_factory=dict)
    checks: dict[tuple[str, str], int] = field(default_factory=dict)
    violations: dict[tuple[str, str], int] = field(default_factory=dict)
    longest_hold_s: float | None = None


class Standing(NamedTuple):
    """How it stands with a moderator now.

    breaker: one of `BREAKER_STATES`. ceiling, rate: calls a second, at most and now. waiting: checks.
    """

    breaker: str
    ceiling: float
    rate: float
    waiting: int


_AWAY = Standing("closed", 0.0, 0.0, 0)


class Calls:
    """Counts the calls to one moderator."""

    __slots__ = ("_calls", "_characters", "_seconds")

    def __init__(self, calls: Counter, characters: Counter, seconds: Histogram) -> None:
        self._calls = calls
        self._characters = characters
        self._seconds = seconds

    def sent(self, characters: int) -> None:
        """A call is sent, with so many characters; one that is a retry counts too."""
        self._calls.inc()
        self._characters.inc(characters)

    def took(self, seconds: float) -> None:
        """A call has ended, if not by our own giving it up."""
        self._seconds.observe(seconds)


class ModerationMetrics:
    """The part of `relay.metrics.Metrics` that is about moderation."""

    def __init__(self, registry: CollectorRegistry) -> None:
        characters = counters(families.MODERATION_CHARACTERS, registry)
        self._characters = [characters[(state,)] for state in CHARACTERS]
        self._checked = characters[("checked",)]
        self._passed = [characters[(state,)] for state in ("in", "checked", "released")]
        self._unverified = counters(families.RELEASED_UNVERIFIED, registry)
        self._checks = Series(Counter, families.MODERATION_CHECKS, registry)
        self._violations = Series(Counter, families.VIOLATIONS, registry)
        self._hold = histogram(families.HOLD, registry)
        self._calls = Series(Counter, families.MODERATION_CALLS, registry)
        self._scanned = Series(Counter, families.MODERATION_SCANNED, registry)
        self._seconds = histograms(families.CALL_SECONDS, registry)
        self._breaker = gauges(families.BREAKER, registry)
        self._ceiling = gauges(families.RATE_CEILING, registry)
        self._rate = gauges(families.RATE_ALLOWED, registry)
        self._waiting = gauges(families.CHECKS_WAITING, registry)
        self._looks: dict[str, list[Callable[[], Standing]]] = {}  # of one name there may be some, in several chains
        self.add_moderator(OTHER, ())

    def add_moderator(self, name: str, labels: Iterable[str]) -> None:
        self._checks.bind(moderator=(name,))
        self._violations.bind(moderator=(name,), label={*labels, OTHER})

    def calls(self, name: str, look: Callable[[], Standing]) -> Calls:
        self._looks.setdefault(name, []).append(look)
        return Calls(self._calls[(name,)], self._scanned[(name,)], self._seconds[(name,)])

    def forget(self, name: str, look: Callable[[], Standing]) -> None:
        """This one is asked no more, and is not to be looked at."""
        looks = self._looks.get(name, [])
        if look in looks:
            looks.remove(look)

    def look(self) -> None:
        """Set the gauges to what is now."""
        for name, looks in tuple(self._looks.items()):
            standings = [stand() for stand in looks] or [_AWAY]
            worst = max(standings, key=lambda each: BREAKER_STATES.index(each.breaker))
            self._breaker[(name,)].set(BREAKER_STATES.index(worst.breaker))
            self._ceiling[(name,)].set(worst.ceiling)
            self._rate[(name,)].set(worst.rate)
            self._waiting[(name,)].set(sum(each.waiting for each in standings))

    def scanned(self, characters: int) -> None:
        """So much of a request was read along, and nothing was found: `moderated` need not be told."""
        self._checked.inc(characters)

    def passed(self, characters: int) -> None:
        """A reply was read, and has left as it came, without waiting."""
        for state in self._passed:
            state.inc(characters)
        self._hold.observe(0.0)

    def moderated(self, tally: ModerationTally) -> None:
        """A moderated request has ended, or a part of it; each is told once."""
        came, checked, released, withheld, blocked = self._characters
        if tally.came:
            came.inc(tally.came)
        if tally.checked:
            checked.inc(tally.checked)
        if tally.released:
            released.inc(tally.released)
        if tally.withheld:
            withheld.inc(tally.withheld)
        if tally.blocked:
            blocked.inc(tally.blocked)
        if tally.unverified:
            for reason, amount in tally.unverified.items():
                self._unverified[(within(reason, UNVERIFIED),)].inc(amount)
        if tally.checks:
            for check, amount in tally.checks.items():
                counted = self._checks.get(check)
                if counted is None:
                    moderator, outcome = check
                    counted = self._checks[self._known(moderator), within(outcome, CHECKS)]
                counted.inc(amount)
        if tally.violations:
            for (moderator, label), amount in tally.violations.items():
                known = self._known(moderator)
                self._violations[known, label if (known, label) in self._violations else OTHER].inc(amount)
        if tally.longest_hold_s is not None:
            self._hold.observe(tally.longest_hold_s)

    def _known(self, moderator: str) -> str:
        return moderator if (moderator, OTHER) in self._checks else OTHER
