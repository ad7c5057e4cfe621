"""`rate_limit`: how many requests, tokens and characters in a minute, and how many requests at the same time.

Counted in the store, over all processes that share it (`relay.limits` says how, and what holds when answers get lost).
While it cannot be reached each process counts by itself, to its part of the limits, and says so in `x-relay-degraded`. With
`memory:` there is one process, and it counts by itself.

Tokens and characters are those of the prompt and of the reply. They are estimated when a request comes, by its prompt and
the longest reply that it allows, and set right when it has ended: by the usage that the upstream tells, or by what was sent.

The headers are OpenAI's, so its clients understand them:
https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Annotated, ClassVar, Final, NamedTuple, get_args

from msgspec import Meta
from multidict import istr

from relay.degraded import degraded
from relay.errors import NO_RETRY, Reject
from relay.exchange import CALLER, Exchange, Key, Operation
from relay.keys import API_KEY, ApiKey, Limits
from relay.limits import MAX, NOTHING, Admission, Dimension, Limiter, Rates, Scope, Share, Standing
from relay.metrics import Metrics
from relay.options import Table
from relay.plugin import Plugin, Reply, Services, Sink
from relay.pure import meter
from relay.pure.cost import MEDIA_TOKENS, MESSAGE_TOKENS, said
from relay.pure.openai import Chunk
from relay.pure.request import ChatRequest
from relay.pure.tokens import estimate

Count = Annotated[int, Meta(ge=1, le=MAX)]

# What is taken for a reply whose request sets no bound, and for the characters of a token.
REPLY_TOKENS: Final = 512
TOKEN_CHARACTERS: Final = 4
# Larger bodies are looked through in a thread, as in `history`.
INLINE_BYTES: Final = 65_536
# Keys whose limits are at hand.
MAX_KNOWN: Final = 4096

_NO_LIMITS: Final = Limits()
_NO_KEY: Final = ApiKey(name="")


class Override(Table, frozen=True, kw_only=True):
    """What holds for one key; what it leaves out is as for the others."""

    requests_per_minute: Count | None = None
    burst: Count | None = None
    tokens_per_minute: Count | None = None
    characters_per_minute: Count | None = None
    concurrent_streams: Count | None = None


class Together(Override, frozen=True, kw_only=True):
    """What holds for all keys together; what it leaves out is not limited."""

    def __post_init__(self) -> None:
        if _rates(self) == Rates():
            raise ValueError(
                "there is no limit in it; set one, as in requests_per_minute = 1000, or leave the table out"
            )
        if self.burst is not None and self.requests_per_minute is None:
            raise ValueError("burst belongs to requests_per_minute; set that too")


class RateLimit(Plugin):
    """Refuses requests that are too many, and says in every reply how many are left.

    requests_per_minute: how fast used requests come back. burst: how many may come at once; a whole minute's, unless it
    is set. tokens_per_minute, characters_per_minute: of prompts and replies. concurrent_streams: how many may be open,
    whole replies and lists of models included. All of these are for one key; the limits that a key of the store carries
    itself come first, then overrides.

    overrides: other numbers for some keys, by their names; a name that no key has is not noticed. models: limits for all
    requests of one model, by its public name, whoever asks. total: limits for all requests together.

    name: relays that share a store count together what has the same name; a second such plugin needs another one.
    """

    requests_per_minute: Count = 600
    burst: Count | None = None
    tokens_per_minute: Count | None = None
    characters_per_minute: Count | None = None
    concurrent_streams: Count = 50
    overrides: dict[str, Override] = dataclasses.field(default_factory=dict)
    models: dict[str, Together] = dataclasses.field(default_factory=dict)
    total: Together | None = None
    name: Annotated[str, Meta(pattern=r"^[\w-]{1,64}$")] = "default"

    guards: ClassVar[bool] = True
    needs: ClassVar[tuple[Key[str], ...]] = (CALLER,)
    serves: ClassVar[frozenset[Operation]] = frozenset({"chat", "models", "quota"})

    _limiter: Limiter = dataclasses.field(init=False)
    _metrics: Metrics = dataclasses.field(init=False)
    _rates: Rates = dataclasses.field(init=False)
    _others: Mapping[str, Rates] = dataclasses.field(init=False)
    _models: Mapping[str, Scope] = dataclasses.field(init=False)
    _total: Scope | None = dataclasses.field(init=False)
    _others_count: bool = dataclasses.field(init=False)  # whether a request may be in another scope than its key's
    _known: dict[str, _Known] = dataclasses.field(init=False)  # by caller
    _open: Key[_Request] = dataclasses.field(init=False)  # one for each such plugin

    def __post_init__(self) -> None:
        self._rates = _rates(self)
        self._others = {name: _instead(self._rates, _rates(other)) for name, other in self.overrides.items()}
        self._models = {name: Scope("model", name, _rates(limits)) for name, limits in self.models.items()}
        self._total = Scope("all", "", _rates(self.total)) if self.total is not None else None
        self._limiter = Limiter(self.name)
        self._others_count = bool(self._models) or self._total is not None
        self._known = {}
        self._open = Key("rate_limit.open", _Request)

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        self._metrics = services.metrics
        pulse = services.pulse
        self._limiter = Limiter(self.name, services.store, lambda: pulse.replicas if pulse is not None else 1)
        promising = services.metrics.store.promising("slot", lambda: self._limiter.slots)
        with promising:
            async with self._limiter.running():
                yield

    @property
    def counts_as(self) -> str:
        """Two of one name, in one store, are one count."""
        return f"rate_limit {self.name}"

    # Requests

    async def on_request(self, ex: Exchange) -> Reply | None:
        """Waits for the store once; without one, for nothing."""
        scopes, metered = self._scopes(ex)
        request, limiter = _Request(), self._limiter
        if metered:
            await request.measure(ex.request)
            _check_size(scopes, request.prompt)
            ex.needs_usage |= any(scope.rates.tokens for scope in scopes)
        asked = ex.id, scopes, request.share, ex.loop.time()
        admission = limiter.admit_here(*asked) if limiter.alone else await limiter.admit(*asked)
        if admission.degraded:
            degraded(ex, self._metrics, "rate_limit")
        _tell(ex, admission)
        if admission.refused is not None:
            raise _refusal(*admission.refused)
        request.admission = admission
        ex[self._open] = request
        return None

    async def on_end(self, ex: Exchange) -> None:
        request = ex[self._open]
        used = request.used(ex) if request.count is not None else None
        self._limiter.end(request.admission, used, ex.loop.time())

    def _scopes(self, ex: Exchange) -> tuple[Sequence[Scope], bool]:
        """Those that a request is in, and whether it matters to one what it takes beside itself."""
        caller, key = ex[CALLER], ex.get(API_KEY, _NO_KEY)
        known = self._known.get(caller)
        if known is None or known.limits is not key.limits:
            known = self._know(caller, key.limits)
        if not self._others_count and ex.operation == "chat":
            return known.scopes, known.metered
        scopes = [*known.scopes]
        if self._models and ex.operation == "chat" and (model := self._models.get(ex.request.model)) is not None:
            scopes.append(model)
        if self._total is not None:
            scopes.append(self._total)
        if ex.operation != "chat":  # it has no tokens, and is not kept from any
            scopes = [
                scope._replace(rates=scope.rates._replace(tokens=None, characters=None))
                if scope.rates.metered
                else scope
                for scope in scopes
            ]
        return scopes, any(scope.rates.metered for scope in scopes)

    def _know(self, caller: str, own: Limits) -> _Known:
        scope = self._scope_of(caller, own)
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        known = self._known[caller] = _Known(own, (scope,), scope.rates.metered)
        return known

    def _scope_of(self, caller: str, own: Limits) -> Scope:
        """The scope of one key. own: the limits that it carries itself."""
        rates = self._others.get(caller, self._rates)
        return Scope("key", caller, rates if own == _NO_LIMITS else _own(rates, own))

    # Replies

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        count = ex[self._open].count
        return sink if count is None else _Meter(count, sink)


class _Request:
    """A request that was let in. prompt: what it says; share: what it may use; count: of its reply, if that is metered."""

    admission: Admission
    prompt = NOTHING
    share = NOTHING
    count: meter.Count | None = None

    async def measure(self, request: ChatRequest) -> None:
        """Estimate what it will take."""
        if len(request.encode()) > INLINE_BYTES:
            self.prompt = await asyncio.to_thread(_measured, request)
        else:
            self.prompt = _measured(request)
        reply = _longest(request)
        self.share = Share(self.prompt.tokens + reply, self.prompt.characters + reply * TOKEN_CHARACTERS)
        self.count = meter.Count()

    def used(self, ex: Exchange) -> Share | None:
        """What it took in the end; None if nobody has counted."""
        count = self.count
        if count is None:
            return None
        nothing_came = not count.characters and count.usage is None
        failed = ex.outcome is not None and ex.outcome.kind == "upstream_error"
        if nothing_came and (failed or not ex.asked):
            return NOTHING
        reported = count.reported
        tokens = sum(reported) if reported is not None else self.prompt.tokens + math.ceil(count.estimated_tokens)
        return Share(tokens, self.prompt.characters + count.characters)


class _Known(NamedTuple):
    """The scope of one key, as long as it has these limits of its own."""

    limits: Limits
    scopes: tuple[Scope]
    metered: bool


class _Meter:
    """Counts what passes."""

    __slots__ = ("_count", "_sink", "end")

    def __init__(self, count: meter.Count, sink: Sink) -> None:
        self._count = count
        self._sink = sink
        self.end = sink.end

    def feed(self, chunk: Chunk) -> None:
        self._count.feed(chunk)
        self._sink.feed(chunk)


def _measured(request: ChatRequest) -> Share:
    """What a prompt says, about."""
    contents = request.contents
    if contents is not None:
        tokens = MESSAGE_TOKENS * len(contents) + sum(map(estimate, contents))
        return Share(math.ceil(tokens), sum(map(len, contents)))
    tokens, characters = 0.0, 0
    for message in request.messages:
        texts, media = said(message)
        tokens += MESSAGE_TOKENS + MEDIA_TOKENS * media + sum(map(estimate, texts))
        characters += sum(map(len, texts))
    return Share(math.ceil(tokens), characters)


def _longest(request: ChatRequest) -> int:
    """How many tokens the reply may have at most, or is taken to have."""
    for name in ("max_completion_tokens", "max_tokens"):
        tokens = request.get(name)
        if type(tokens) is int and tokens > 0:
            return min(tokens, MAX) * request.choices
    return REPLY_TOKENS * request.choices


def _rates(table: Override | RateLimit) -> Rates:
    return Rates(
        table.requests_per_minute,
        table.burst,
        table.tokens_per_minute,
        table.characters_per_minute,
        table.concurrent_streams,
    )


def _instead(rates: Rates, others: Rates) -> Rates:
    """`others`, and what they do not say as in `rates`."""
    return Rates(*(rate if other is None else other for rate, other in zip(rates, others, strict=True)))


def _own(rates: Rates, own: Limits) -> Rates:
    """A key's own limits before all others. They may be larger than those of a file."""
    given = (
        own.requests_per_minute,
        own.burst,
        own.tokens_per_minute,
        own.characters_per_minute,
        own.concurrent_streams,
    )
    return _instead(rates, Rates(*(None if limit is None else min(limit, MAX) for limit in given)))


# What clients are told

_NOUNS: Final[Mapping[str, str]] = {"key": "", "model": " for the model {}", "all": " for all requests together"}


def _check_size(scopes: Sequence[Scope], prompt: Share) -> None:
    """Raises a refusal of a prompt that no minute has room for: waiting does not help."""
    for scope in scopes:
        for name, size, limit in (
            ("tokens", prompt.tokens, scope.rates.tokens),
            ("characters", prompt.characters, scope.rates.characters),
        ):
            if limit is not None and size > limit:
                raise Reject(
                    f"Request too large{_whose(scope)} on {name} per minute: limit {limit}, the messages have about "
                    f"{size}. Send less.",
                    code="rate_limit_exceeded",
                    type=name,
                    status=429,
                    headers=NO_RETRY,
                )


_HEADERS: Final[Mapping[Dimension, tuple[istr, istr, istr]]] = {
    name: (istr(f"x-ratelimit-limit-{name}"), istr(f"x-ratelimit-remaining-{name}"), istr(f"x-ratelimit-reset-{name}"))
    for name in get_args(Dimension)
}


_written: Final = lru_cache(1024)(str)  # of limits, which are always the same


def _tell(ex: Exchange, admission: Admission) -> None:
    """Of each kind the limit that is nearest to its end; of a refusal those of the scope that refuses."""
    standings = admission.standings if admission.refused is None else [admission.refused[1]]
    tightest = standings[0].decisions
    for standing in standings[1:]:
        for name, decision in standing.decisions.items():
            if name not in tightest or decision.remaining < tightest[name].remaining:
                tightest = {**tightest, name: decision}
    headers = ex.reply_headers
    for name, decision in tightest.items():
        limit, remaining, reset = _HEADERS[name]
        headers[limit] = _written(decision.limit)
        headers[remaining] = str(decision.remaining)
        headers[reset] = duration(decision.reset_s)


def _refusal(scope: Scope, standing: Standing) -> Reject:
    refused = standing.refused
    if refused is None or refused == "open":
        return Reject(
            f"Too many requests in flight{_whose(scope)}: limit {scope.rates.open}. "
            "Try again when one of them has ended.",
            code="too_many_requests_in_flight",
            type="requests",
            status=429,
            headers={"Retry-After": "1"},
        )
    decision = standing.decisions[refused]
    limit = f"limit {getattr(scope.rates, refused)}"
    if refused == "requests":
        limit += f", {decision.limit} at once"
    else:
        limit += f", {decision.remaining} left"
    return Reject(
        f"Rate limit reached{_whose(scope)} on {refused} per minute: {limit}. "
        f"Try again in {duration(decision.retry_after_s)}.",
        code="rate_limit_exceeded",
        type=refused,
        status=429,
        headers={"Retry-After": str(max(1, math.ceil(decision.retry_after_s)))},
    )


def _whose(scope: Scope) -> str:
    return _NOUNS[scope.kind].format(scope.name)


def duration(seconds: float) -> str:
    """Time as OpenAI's headers and Go write it: "120ms", "1.5s", "6m0s". Rounded up to whole milliseconds."""
    whole_ms = math.ceil(seconds * 1000 - 5e-7)  # 16.1 s are 16,100.000000000002 ms to floats
    if 0 < whole_ms < 1000:
        return f"{whole_ms}ms"
    minutes, ms = divmod(whole_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{ms / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{rest}"
    return f"{minutes}m{rest}" if minutes else rest
