"""`rate_limit`: how many requests a key may make in a minute, and how many may be open at the same time.

What it counts lives in this process and is gone with it: two relays allow twice as much. A store that they share is to
come.

The headers are OpenAI's, so its clients understand them:
https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, ClassVar

from msgspec import Meta

from relay.errors import Reject
from relay.exchange import CALLER, Exchange, Key, Operation
from relay.options import Table
from relay.plugin import Plugin, Reply
from relay.pure.bucket import NEVER, Bucket, Decision

Count = Annotated[int, Meta(ge=1)]

PERIOD_S = 60.0

# Callers that each request looks at to forget them: more than the one that it may add, so what is kept shrinks.
_SWEPT = 2


class Override(Table, frozen=True, kw_only=True):
    """What holds for one key; what it leaves out is as for the others."""

    requests_per_minute: Count | None = None
    burst: Count | None = None
    concurrent_streams: Count | None = None


class _Limits:
    """What one key may do."""

    __slots__ = ("bucket", "concurrent", "per_minute")

    def __init__(self, per_minute: int, burst: int | None, concurrent: int) -> None:
        self.per_minute = per_minute
        self.bucket = Bucket(per_minute, PERIOD_S, burst or per_minute)
        self.concurrent = concurrent


class _Caller:
    """What one key has done."""

    __slots__ = ("in_flight", "limits", "tat")

    def __init__(self, limits: _Limits) -> None:
        self.limits = limits
        self.tat = NEVER
        self.in_flight = 0


class RateLimit(Plugin):
    """Refuses requests of a key that makes too many, and says in every reply how many are left.

    requests_per_minute: how fast used requests come back. burst: how many may come at once; a whole minute's, unless it
    is set. concurrent_streams: how many may be open, whole replies and lists of models included. overrides: other
    numbers for some keys, by their names; a name that no key has is not noticed.
    """

    requests_per_minute: Count = 600
    burst: Count | None = None
    concurrent_streams: Count = 50
    overrides: dict[str, Override] = dataclasses.field(default_factory=dict)

    needs: ClassVar[tuple[Key[str], ...]] = (CALLER,)
    serves: ClassVar[frozenset[Operation]] = frozenset({"chat", "models"})

    _limits: _Limits = dataclasses.field(init=False)
    _others: Mapping[str, _Limits] = dataclasses.field(init=False)
    _callers: OrderedDict[str, _Caller] = dataclasses.field(init=False)
    _slot: Key[_Caller] = dataclasses.field(init=False)  # whose slot an exchange holds; one for each such plugin

    def __post_init__(self) -> None:
        self._limits = _Limits(self.requests_per_minute, self.burst, self.concurrent_streams)
        self._others = {
            name: _Limits(
                other.requests_per_minute or self.requests_per_minute,
                other.burst or self.burst,
                other.concurrent_streams or self.concurrent_streams,
            )
            for name, other in self.overrides.items()
        }
        self._callers = OrderedDict()
        self._slot = Key("rate_limit.slot", _Caller)

    async def on_request(self, ex: Exchange) -> Reply | None:
        """Nothing is awaited here: between the two questions and the taking of the slot nobody else is asked."""
        now = ex.loop.time()
        self._forget(now)
        caller = self._caller(ex[CALLER])
        limits = caller.limits
        if caller.in_flight >= limits.concurrent:
            _tell(ex, limits.bucket.look(caller.tat, now))
            raise Reject(
                f"Too many requests in flight: limit {limits.concurrent}. Try again when one of them has ended.",
                code="too_many_requests_in_flight",
                type="requests",
                status=429,
                headers={"Retry-After": "1"},
            )
        decision, caller.tat = limits.bucket.ask(caller.tat, now)
        _tell(ex, decision)
        if not decision.allowed:
            raise Reject(
                f"Rate limit reached on requests per minute: limit {limits.per_minute}, {decision.limit} at once. "
                f"Try again in {duration(decision.retry_after_s)}.",
                code="rate_limit_exceeded",
                type="requests",
                status=429,
                headers={"Retry-After": str(math.ceil(decision.retry_after_s))},
            )
        ex[self._slot] = caller
        caller.in_flight += 1
        return None

    async def on_end(self, ex: Exchange) -> None:
        ex[self._slot].in_flight -= 1

    def _caller(self, name: str) -> _Caller:
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = _Caller(self._others.get(name, self._limits))
        return caller

    def _forget(self, now: float) -> None:
        """Forget callers that stand as if they had never asked: a few at each request, never all of them at one."""
        for _ in range(min(_SWEPT, len(self._callers))):
            name, caller = next(iter(self._callers.items()))
            if caller.in_flight or not caller.limits.bucket.is_full(caller.tat, now):
                self._callers.move_to_end(name)
            else:
                del self._callers[name]


def _tell(ex: Exchange, decision: Decision) -> None:
    ex.reply_headers["x-ratelimit-limit-requests"] = str(decision.limit)
    ex.reply_headers["x-ratelimit-remaining-requests"] = str(decision.remaining)
    ex.reply_headers["x-ratelimit-reset-requests"] = duration(decision.reset_s)


def duration(seconds: float) -> str:
    """Time as OpenAI's headers and Go write it: "120ms", "1.5s", "6m0s". Rounded up to whole milliseconds."""
    whole_ms = math.ceil(round(seconds * 1000, 6))  # 16.1 s are 16,100.000000000002 ms to floats
    if 0 < whole_ms < 1000:
        return f"{whole_ms}ms"
    minutes, ms = divmod(whole_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{ms / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{rest}"
    return f"{minutes}m{rest}" if minutes else rest
