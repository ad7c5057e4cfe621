"""Limits: how many requests, tokens and characters a minute, and how many requests at the same time, in every scope.

A *scope* is whose requests are counted together: one key's, all of one model, all there are. A request takes its share of
every scope that it is in, or of none: one script for each scope, all in one write, awaited together; where one refuses, the
others get theirs back.

Requests are counted by GCRA (`relay.pure.bucket` says what that is), tokens and characters in a sliding window
(`relay.pure.sliding`), requests in flight by leases: the id of a request and when it stops counting unless it is renewed,
which this process does while the request is open. Time is the store's, so the clocks of the processes do not matter.

What holds when answers get lost. A script that ran twice with one id counts once, while that request's lease lasts. A
request whose answer got lost is given back; if that gets lost too, its rate stays used and its slot is free when the lease
ends. The end of a request is sent and not awaited; if it gets lost, the slot is free when the lease ends, and the estimate
of its tokens stands. Nothing is ever counted below what was used, but for what a request used beyond its estimate after its
lease had run out.

Without an answer of the store, or without a store, this process counts by itself: as many requests as it has open, and
rates that begin anew, all of them divided by the number of processes that live. What is still open when the store is back is
counted there with the next renewal of its lease.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from itertools import islice, repeat
from typing import Any, Final, Literal, NamedTuple

import msgspec

from relay.pure.bucket import NEVER, Bucket, Decision
from relay.pure.sliding import SlidingWindow, Taken, correct
from relay.store.port import Script, Store, StoreError

TAKE: Final = Script("limits_take")
END: Final = Script("limits_end")
UNDO: Final = Script("limits_undo")
RENEW: Final = Script("limits_renew")

MAX: Final = 100_000_000
"""No limit is above this: with it the numbers of the scripts stay exact."""

PERIOD_S: Final = 60.0
MINUTE_US: Final = 60_000_000
# A process that dies leaves its slots taken for so long.
LEASE_S: Final = 30.0
LEASE_US: Final = round(LEASE_S * 1e6)
RENEW_EVERY_S: Final = LEASE_S / 3
# What one script renews, and how many scripts go together: nobody should wait for long behind them.
LEASES_AT_ONCE: Final = 500
SCOPES_AT_ONCE: Final = 50

# Callers that each request looks at to forget them: more than the one that it may add, so what is kept shrinks.
_SWEPT: Final = 2

Kind = Literal["key", "model", "all"]
Dimension = Literal["requests", "tokens", "characters"]
Refusal = Literal["open", "requests", "tokens", "characters"]

_REFUSALS: Final[tuple[Refusal | None, ...]] = (None, "open", "requests", "tokens", "characters")


class Rates(NamedTuple):
    """What may be done in one scope, each from 1 to MAX. None: as much as one likes.

    requests, tokens, characters: a minute. burst: how many requests at once; a whole minute's, if that is not said.
    open: at the same time.
    """

    requests: int | None = None
    burst: int | None = None
    tokens: int | None = None
    characters: int | None = None
    open: int | None = None

    @property
    def metered(self) -> bool:
        """Whether it matters what a request takes beside itself."""
        return self.tokens is not None or self.characters is not None

    def divided(self, by: int) -> Rates:
        return Rates(*(None if limit is None else max(1, limit // by) for limit in self)) if by > 1 else self


class Scope(NamedTuple):
    """Whose requests are counted together. name: the key's or the model's; "" for all."""

    kind: Kind
    name: str
    rates: Rates


class Share(NamedTuple):
    """What one request takes beside itself."""

    tokens: int = 0
    characters: int = 0

    def within(self, rates: Rates) -> Share:
        """As much of it as is limited, and fits into a whole minute."""
        if rates.tokens is None and rates.characters is None:
            return NOTHING
        return Share(min(self.tokens, rates.tokens or 0), min(self.characters, rates.characters or 0))


NOTHING: Final = Share()


class Standing(msgspec.Struct, frozen=True):
    """How one scope stands now. refused: what there was too much of; None: the request is let in."""

    refused: Refusal | None
    decisions: dict[Dimension, Decision]


class Admission:
    """What has been decided about one request, and what has to be given back when it ends.

    refused: the first scope that refuses it; None: it is let in. degraded: it was decided without the store.
    taken_at: in the store: when, in µs of its clock, for each scope. taken_here: in this process: when, and divided by what.
    """

    __slots__ = ("degraded", "id", "refused", "scopes", "share", "standings", "taken_at", "taken_here")

    def __init__(self, id: str, scopes: Sequence[Scope], share: Share, standings: Sequence[Standing]) -> None:
        self.id = id
        self.scopes = scopes
        self.share = share
        self.standings = standings
        self.refused: tuple[Scope, Standing] | None = None
        self.degraded = False
        self.taken_at: Sequence[int] | None = None
        self.taken_here: tuple[float, int] | None = None
        for standing in standings:
            if standing.refused is not None:
                self.refused = scopes[standings.index(standing)], standing
                break


class Limiter:
    """Lets requests in. Nothing is awaited where there is no store.

    name: whose limits these are; what two limiters of one name count in one store is one count. replicas: how many
    processes share the store now.
    """

    def __init__(self, name: str, store: Store | None = None, replicas: Callable[[], int] = lambda: 1) -> None:
        self.alone = store is None  # then `admit_here` says all that there is to say
        self._store = store
        self._replicas = replicas
        self.here = Here()
        self._keys = lru_cache(4096)(partial(_keys, store, name))
        self._leased: dict[str, set[str]] = {}  # key of the leases of a scope → ids of requests
        self._sent: set[asyncio.Future[Any]] = set()  # what nobody awaits

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Leases are renewed as long as this is open; then what was sent is awaited."""
        if self._store is None:
            yield
            return
        renewing = asyncio.create_task(self._renew_forever(self._store))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait((renewing,))
            while self._sent:
                await asyncio.wait(self._sent)

    @property
    def slots(self) -> int:
        """How many requests of this process have places in the store that it renews."""
        return len(set().union(*self._leased.values()))

    async def admit(self, id: str, scopes: Sequence[Scope], share: Share, now: float) -> Admission:
        """Ask for a request. id: one that no other request has; now: this process's clock, in seconds."""
        if self._store is not None:
            self.here.forget(now)
            admission = await self._ask(self._store, id, scopes, share)
            if admission is not None:
                if admission.refused is None:
                    self.here.open(scopes)
                    self._lease(admission)
                return admission
        return self.admit_here(id, scopes, share, now)

    def admit_here(self, id: str, scopes: Sequence[Scope], share: Share, now: float) -> Admission:
        """The same without the store."""
        here, store = self.here, self._store
        here.forget(now)
        replicas = self._replicas() if store is not None else 1
        admission = Admission(id, scopes, share, here.ask(scopes, share, replicas, now))
        if admission.refused is None:
            admission.taken_here = now, replicas
        if store is not None:
            admission.degraded = True
            if admission.refused is None:  # it counts there too, from the next renewal that arrives
                self._lease(admission)
        return admission

    def _lease(self, admission: Admission) -> None:
        for scope in admission.scopes:
            self._leased.setdefault(self._keys(scope.kind, scope.name)[0], set()).add(admission.id)

    def end(self, admission: Admission, used: Share | None, now: float) -> None:
        """A request that was let in has ended, once. used: what it took in truth; None: what it asked for."""
        self.here.close(admission.scopes)
        taken = admission.share
        if used is not None and admission.taken_here is not None:
            then, replicas = admission.taken_here
            self.here.correct(admission.scopes, taken, used, replicas, then, now)
        store = self._store
        if store is None:
            return
        if admission.taken_at is None:  # of what the store counts a minute it took nothing
            taken, used = NOTHING, None
        for scope, taken_at in zip(admission.scopes, admission.taken_at or repeat(0), strict=False):
            keys = self._keys(scope.kind, scope.name)
            ids = self._leased.get(keys[0], set())
            ids.discard(admission.id)
            if not ids:
                self._leased.pop(keys[0], None)
            took, rates = taken.within(scope.rates), scope.rates
            spent = took
            if used is not None and rates.metered:
                spent = Share(
                    min(used.tokens, MAX) if rates.tokens is not None else 0,
                    min(used.characters, MAX) if rates.characters is not None else 0,
                )
            amounts = took.tokens, spent.tokens, took.characters, spent.characters
            self._send(store.run(END, (keys[0], keys[2], keys[3]), (admission.id, taken_at, *amounts)))

    async def _ask(self, store: Store, id: str, scopes: Sequence[Scope], share: Share) -> Admission | None:
        """What the store says; None if it does not."""
        asked: list[asyncio.Future[list[int]]] = [
            asyncio.ensure_future(
                store.run(TAKE, self._keys(scope.kind, scope.name), (id, *_arguments(scope.rates, share)))
            )
            for scope in scopes
        ]
        answers: list[list[int] | StoreError] = []
        try:
            for answer in asked:
                try:
                    answers.append(await asyncio.shield(answer))
                except StoreError as trouble:
                    answers.append(trouble)
        except BaseException:  # the client has left
            for scope, answer in zip(scopes, asked, strict=True):
                self._send(self._undo_when_known(store, id, scope, share, answer))
            raise
        told = [(scope, answer) for scope, answer in zip(scopes, answers, strict=True) if isinstance(answer, list)]
        refused = any(answer[0] for _, answer in told)
        if not refused and len(told) == len(scopes):
            admission = self._admission(id, told, share)
            admission.taken_at = [answer[1] for _, answer in told]
            return admission
        taken = [scope for scope, answer in told if not answer[0]]
        lost = [scope for scope, answer in zip(scopes, answers, strict=True) if getattr(answer, "acted", False)]
        self._undo(store, id, taken + lost, share)
        return self._admission(id, told, share) if refused else None

    def _admission(self, id: str, told: Sequence[tuple[Scope, list[int]]], share: Share) -> Admission:
        standings = [_standing(scope.rates, answer) for scope, answer in told]
        return Admission(id, [scope for scope, _ in told], share, standings)

    async def _undo_when_known(
        self, store: Store, id: str, scope: Scope, share: Share, answer: asyncio.Future[list[int]]
    ) -> None:
        """Give back what nobody asks for any more. Not before there is an answer: a script may be overtaken by the next."""
        try:
            taken = not (await answer)[0]
        except StoreError as trouble:
            taken = trouble.acted
        if taken:
            self._undo(store, id, [scope], share)

    def _undo(self, store: Store, id: str, scopes: Iterable[Scope], share: Share) -> None:
        for scope in scopes:
            took = share.within(scope.rates)
            self._send(
                store.run(
                    UNDO,
                    self._keys(scope.kind, scope.name),
                    (id, LEASE_US, scope.rates.requests or 0, took.tokens, took.characters),
                )
            )

    def _send(self, asked: Awaitable[Any]) -> asyncio.Future[Any]:
        """It is on its way, and nobody has to wait for it: if it gets lost, leases end."""
        sent = asyncio.ensure_future(asked)
        self._sent.add(sent)
        sent.add_done_callback(self._was_sent)
        return sent

    def _was_sent(self, sent: asyncio.Future[Any]) -> None:
        self._sent.discard(sent)
        if not sent.cancelled():
            sent.exception()  # has been seen

    async def _renew_forever(self, store: Store) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            await self.renew(store)

    async def renew(self, store: Store) -> None:
        """Have the leases of all requests that are open here begin anew."""
        for keys in _batches([*self._leased], SCOPES_AT_ONCE):
            asked = [(key, ids) for key in keys for ids in _batches([*self._leased.get(key, ())], LEASES_AT_ONCE)]
            sent = [self._send(store.run(RENEW, (key,), (LEASE_US, *ids))) for key, ids in asked]
            if sent:
                await asyncio.wait(sent)
            for key, ids in asked:
                # Who has ended meanwhile may have been before it: a script that the server has not is sent once more.
                for ended in set(ids).difference(self._leased.get(key, ())):
                    self._send(store.run(END, (key, key, key), (ended, 0, 0, 0, 0, 0)))


def _batches(all_of_them: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (all_of_them[start : start + size] for start in range(0, len(all_of_them), size))


def _keys(store: Store | None, name: str, kind: Kind, scope: str) -> tuple[str, str, str, str]:
    assert store is not None
    tag = f"limits:{name}:{kind}:{scope}"
    return (
        store.key(tag, "open"),
        store.key(tag, "requests"),
        store.key(tag, "tokens"),
        store.key(tag, "characters"),
    )


def _arguments(rates: Rates, share: Share) -> tuple[int, ...]:
    took = share.within(rates)
    return (
        *(LEASE_US, rates.open or 0),
        *(rates.requests or 0, rates.burst or rates.requests or 0),
        *(rates.tokens or 0, took.tokens, rates.characters or 0, took.characters),
    )


def _standing(rates: Rates, answer: list[int]) -> Standing:
    """An answer of the script, as the headers of a reply need it."""
    code, _, _, level, *windows = answer
    refused = _REFUSALS[code]
    decisions: dict[Dimension, Decision] = {}
    if rates.requests is not None:
        burst = rates.burst or rates.requests
        over = level - (burst - 1) * MINUTE_US
        decisions["requests"] = Decision(
            refused != "requests",
            burst,
            max(0, burst + -level // MINUTE_US),
            -(-over // rates.requests) / 1e6 if refused == "requests" else 0.0,
            level / rates.requests / 1e6,
        )
    if rates.tokens is not None:
        taken, wait_us, reset_us = windows[:3]
        decisions["tokens"] = _window(refused != "tokens", rates.tokens, taken, wait_us, reset_us)
    if rates.characters is not None:
        taken, wait_us, reset_us = windows[3:]
        decisions["characters"] = _window(refused != "characters", rates.characters, taken, wait_us, reset_us)
    return Standing(refused, decisions)


def _window(allowed: bool, limit: int, taken: int, wait_us: int, reset_us: int) -> Decision:
    return Decision(allowed, limit, max(0, limit - taken), 0.0 if allowed else wait_us / 1e6, reset_us / 1e6)


# In this process


_UNLIMITED: Final = Rates()


class _Caller:
    """What has been done in one scope. in_flight: requests that are open here, whoever let them in.

    rates: by which it was asked last; asked: their bucket, if they limit requests; bucket: that, or that of those before.
    """

    __slots__ = ("asked", "bucket", "characters", "in_flight", "metered", "rates", "tat", "tokens")

    def __init__(self) -> None:
        self.rates = _UNLIMITED
        self.metered = False
        self.asked: Bucket | None = None
        self.bucket: Bucket | None = None
        self.tat = NEVER
        self.tokens: Taken = {}
        self.characters: Taken = {}
        self.in_flight = 0


class Here:
    """What this process has let in, and what it still may."""

    def __init__(self) -> None:
        self._callers: OrderedDict[tuple[Kind, str], _Caller] = OrderedDict()

    def ask(self, scopes: Sequence[Scope], share: Share, replicas: int, now: float) -> list[Standing]:
        """How each scope stands. If no one refuses, all have given what was asked for, and the request is open."""
        passing = []
        for scope in scopes:
            kind, name, rates = scope
            caller = self._callers.get((kind, name)) or self._caller(scope)
            passed = _passing(caller, rates if replicas == 1 else rates.divided(replicas), share, now)
            if passed is None:
                return [_look(self._caller(scope), scope.rates.divided(replicas), share, now) for scope in scopes]
            passing.append((caller, passed))
        standings = []
        for caller, (decided, tat) in passing:
            caller.in_flight += 1
            caller.tat = tat
            decisions: dict[Dimension, Decision] = {} if decided is None else {"requests": decided}
            if caller.metered:
                _take(caller, share, now, decisions)
            standings.append(Standing(None, decisions))
        return standings

    def open(self, scopes: Sequence[Scope]) -> None:
        """The store has let it in."""
        for scope in scopes:
            self._caller(scope).in_flight += 1

    def close(self, scopes: Sequence[Scope]) -> None:
        for scope in scopes:
            self._callers[scope.kind, scope.name].in_flight -= 1

    def correct(
        self, scopes: Sequence[Scope], taken: Share, used: Share, replicas: int, then: float, now: float
    ) -> None:
        """What `ask` was told at `then` was an estimate."""
        for scope in scopes:
            caller, rates = self._caller(scope), scope.rates.divided(replicas)
            took = taken.within(rates)
            if rates.tokens is not None:
                correct(caller.tokens, then, took.tokens, used.tokens, now)
            if rates.characters is not None:
                correct(caller.characters, then, took.characters, used.characters, now)

    def forget(self, now: float) -> None:
        """Forget callers that stand as if they had never asked: a few at each request, never all of them at one."""
        callers = self._callers
        if len(callers) == 1:
            return  # there is nothing to gain
        for name in tuple(islice(callers, _SWEPT)):
            caller = callers[name]
            if not caller.in_flight and _stands_new(caller, now):
                del callers[name]
            else:
                callers.move_to_end(name)

    def in_flight(self, kind: Kind, name: str = "") -> int:
        """How many requests of a scope are open here."""
        caller = self._callers.get((kind, name))
        return caller.in_flight if caller is not None else 0

    def _caller(self, scope: Scope) -> _Caller:
        caller = self._callers.get((scope.kind, scope.name))
        if caller is None:
            caller = self._callers[scope.kind, scope.name] = _Caller()
        return caller


def _stands_new(caller: _Caller, now: float) -> bool:
    """Of one who has nothing open."""
    return (
        (caller.bucket is None or caller.bucket.is_full(caller.tat, now))
        and not (caller.tokens and SlidingWindow(MAX).look(caller.tokens, now).remaining < MAX)
        and not (caller.characters and SlidingWindow(MAX).look(caller.characters, now).remaining < MAX)
    )


@lru_cache(1024)
def _bucket(requests: int, burst: int) -> Bucket:
    return Bucket(requests, PERIOD_S, burst)


def _ready(caller: _Caller, rates: Rates, now: float) -> Bucket | None:
    """The bucket of these rates, with the caller in it: they change with the number of processes, and with a key."""
    if rates is not caller.rates:
        caller.rates, caller.metered, caller.asked = rates, rates.metered, None
        if rates.requests is not None:
            bucket = _bucket(rates.requests, rates.burst or rates.requests)
            if caller.bucket is not None and caller.bucket is not bucket:
                caller.tat = caller.bucket.moved(caller.tat, now, bucket)
            caller.asked = caller.bucket = bucket
    return caller.asked


# The decision about a request that passes, and the TAT after it; None where requests are not limited.
_Passed = tuple[Decision, float] | tuple[None, float]


def _passing(caller: _Caller, rates: Rates, share: Share, now: float) -> _Passed | None:
    """What becomes of a request that nobody refuses; None if this scope does. Nothing is taken yet."""
    most = rates.open
    if most is not None and caller.in_flight >= most:
        return None
    bucket = caller.asked if rates is caller.rates else _ready(caller, rates, now)
    if caller.metered and not all(one.allowed for one in _look_at_windows(caller, rates, share, now).values()):
        return None
    if bucket is None:
        return None, caller.tat
    passed = bucket.ask(caller.tat, now)
    return passed if passed[0].allowed else None


def _take(caller: _Caller, share: Share, now: float, decisions: dict[Dimension, Decision]) -> None:
    """Have a request take its share. Its caller was asked just now."""
    rates = caller.rates
    took = share.within(rates)
    if rates.tokens is not None:
        decisions["tokens"] = SlidingWindow(rates.tokens).take(caller.tokens, now, took.tokens)
    if rates.characters is not None:
        decisions["characters"] = SlidingWindow(rates.characters).take(caller.characters, now, took.characters)


def _refusal(caller: _Caller, rates: Rates, share: Share, now: float) -> Refusal | None:
    """What there is too much of."""
    if rates.open is not None and caller.in_flight >= rates.open:
        return "open"
    bucket = _ready(caller, rates, now)
    if bucket is not None and not bucket.passes(caller.tat, now):
        return "requests"
    if rates.metered:
        decisions = _look_at_windows(caller, rates, share, now)
        return next((name for name in decisions if not decisions[name].allowed), None)
    return None


def _look(caller: _Caller, rates: Rates, share: Share, now: float) -> Standing:
    decisions: dict[Dimension, Decision] = {}
    bucket = _ready(caller, rates, now)
    if bucket is not None:
        decisions["requests"] = bucket.look(caller.tat, now)
    return Standing(_refusal(caller, rates, share, now), decisions | _look_at_windows(caller, rates, share, now))


def _look_at_windows(caller: _Caller, rates: Rates, share: Share, now: float) -> dict[Dimension, Decision]:
    decisions: dict[Dimension, Decision] = {}
    took = share.within(rates)
    if rates.tokens is not None:
        decisions["tokens"] = SlidingWindow(rates.tokens).look(caller.tokens, now, took.tokens)
    if rates.characters is not None:
        decisions["characters"] = SlidingWindow(rates.characters).look(caller.characters, now, took.characters)
    return decisions
