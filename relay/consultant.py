"""One moderator, asked within bounds: so often, so long, so many times, and not at all while it is down.

What happens to one text. It waits for a slot of the budget (`relay.budget`). Then it is shown, and from that moment
there are `deadline_s` for a verdict: half of them for a call, so that there is time to ask again after one that hangs.
It is asked again, twice at most, when that may help: after a connection that broke, a fault inside the service, a call
that took too long. Of texts of which one call in a hundred fails one in a million has no verdict in the end; if those
calls hang, and there is time for two only, one in ten thousand.

"Too many" is no failure: the rate falls, and the text waits for another slot, a little longer each time.

Every call is told to the breaker (`relay.pure.breaker`). While that is open nothing is asked and nobody waits, and what
waits when it opens is told at once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from aiohttp import ClientConnectionError, ClientPayloadError

from relay.account import Account
from relay.budget import Budget
from relay.errors import being_cancelled
from relay.events import NOWHERE, Publisher
from relay.log import Logger
from relay.metrics import Metrics, Standing
from relay.moderator import PASS, Context, Moderator, NoVerdict, RateLimited, Unauthorized, Unavailable, Verdict
from relay.pure.breaker import Breaker
from relay.pure.ruling import NOTHING_FOUND, Ruling
from relay.pure.throttle import Throttle
from relay.store.port import Store
from relay.verdicts import SharedVerdicts, Verdicts

Reason = Literal["timeout", "error", "breaker_open", "rate_limited", "unauthorized"]
"""Why there is no verdict."""

MAX_RETRIES: Final = 2
CALL_SHARE: Final = 0.5  # of the deadline, for one call
# With less of the deadline than this left an answer would come too late.
LEAST_SHARE: Final = 0.05

# The waits between are 6.5 s together: longer than any limit that is counted by the second.
MAX_REFUSALS: Final = 10
FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 1.0

# A request has been sent nowhere yet, and its client waits for the head.
TEXT_PATIENCE_S: Final = 10.0

# One line of a kind in so many seconds.
QUIET_S: Final = 10.0

# Worth asking again. All but the first are what a moderator should translate into it, and may not have.
_UNAVAILABLE = (Unavailable, OSError, EOFError, ClientConnectionError, ClientPayloadError)


@dataclass(frozen=True, slots=True)
class Unjudged:
    """There is no verdict, and why. heard: what other moderators wanted done all the same."""

    reason: Reason
    moderator: str
    heard: Ruling = NOTHING_FOUND


Answer = Verdict | Unjudged


class _Failure(NamedTuple):
    """A call that failed, and is worth another one."""

    reason: Reason
    event: str
    cause: Exception


class Consultant:
    """See the head of this file.

    name: the moderator's, in logs and metrics; one that no other has, or the gauges show the later one's.
    cache_s: how long verdicts on pieces of requests are kept, if the moderator lets them be; 0: not at all, and no call is
    shared either. `close` ends the calls that are.
    in_order: whether the windows of a reply have to be shown one after the other.
    store: where processes share the moderator's calls, and the verdicts if `share_verdicts`; None: there is one process.
    replicas: how many processes there are. A moderator whose calls cost nothing (`calls_per_second` infinite) shares
    neither.
    """

    def __init__(
        self,
        name: str,
        moderator: Moderator,
        *,
        deadline_s: float,
        cache_s: float = 0.0,
        store: Store | None = None,
        replicas: Callable[[], int] = lambda: 1,
        share_verdicts: bool = True,
        log: Logger,
        metrics: Metrics,
        events: Publisher = NOWHERE,
    ) -> None:
        self.name = name
        self.in_order = moderator.in_order
        self._account: Account | None = None
        shared = None
        calls = moderator.calls_per_second
        if store is not None and math.isfinite(calls):
            self._account = Account(store, moderator.account, calls, replicas)
            if share_verdicts and cache_s > 0 and moderator.cacheable:
                shared = SharedVerdicts(store, moderator, cache_s)
        self.budget = Budget(calls, self._account)
        self._loop = asyncio.get_running_loop()
        self._check = moderator.check
        self._deadline_s = deadline_s
        self._breaker = Breaker()
        self._verdicts = Verdicts(cache_s, shared) if cache_s > 0 and moderator.cacheable else None
        self._metrics = metrics
        self._counts = metrics.calls(name, self._standing)
        self._complaints = _Complaints(log.bind(moderator=name))
        self._events = events
        self._told_state = self._breaker.state
        self._throttle = Throttle(self.budget.rate)

    @property
    def available(self) -> bool:
        """Whether it would be asked now; if not, there is no use in waiting."""
        return self._breaker.allows(self._loop.time())

    @property
    def degraded(self) -> bool:
        """Whether its calls are counted in this process alone, as the store is away."""
        return self._account is not None and self._account.degraded

    async def ask(self, show: Callable[[], str], context: Context, *, slot: bool = False) -> Answer:
        """A verdict on a window of a reply, for which a slot is awaited as long as it takes.

        show: gives the text at the moment in which it is sent, nothing if there is none to be judged.
        slot: there is one already, for the first call.
        """
        return await self._ask(show, context, slot, None)

    async def ask_text(self, text: str, context: Context) -> tuple[Answer, bool]:
        """A verdict on a piece of a request, and whether no call was made for it."""

        async def ask() -> Answer:
            return await self._ask(lambda: text, context, False, self._loop.time() + TEXT_PATIENCE_S)

        if self._verdicts is None:
            return await ask(), False
        try:
            return await self._verdicts.ask(text, ask)
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            return Unjudged("error", self.name), False  # the relay stops

    async def close(self) -> None:
        self._metrics.calls_end(self.name, self._standing)
        if self._verdicts is not None:
            await self._verdicts.close()
        if self._account is not None:
            await self._account.close()

    async def _ask(self, show: Callable[[], str], context: Context, slot: bool, until: float | None) -> Answer:
        refusals = 0
        while True:
            if not slot:
                reason = await self._wait_for_slot(context.exchange, until, again=refusals > 0)
                if reason is not None:
                    return Unjudged(reason, self.name)
            slot = False
            answer = await self._consult(show, context)
            if answer is not None:
                return answer
            refusals += 1
            if refusals == MAX_REFUSALS:
                self._complaints.warn("moderator is asked too often", context)
                return Unjudged("rate_limited", self.name)
            await asyncio.sleep(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (refusals - 1)))

    async def _wait_for_slot(self, stream: str, until: float | None, *, again: bool) -> Reason | None:
        """Why there is none; None if there is."""
        if not self.available:
            return "breaker_open"
        if self.budget.try_take():
            return None
        try:
            async with asyncio.timeout_at(until):
                given = await self.budget.take(stream, again=again)
        except TimeoutError:
            return "rate_limited"
        return None if given else "breaker_open"

    async def _consult(self, show: Callable[[], str], context: Context) -> Answer | None:
        """Show a text for which there is a slot, and ask until there is an answer. None: there were too many calls."""
        ticket = self._enter()
        if not ticket:
            return Unjudged("breaker_open", self.name)
        try:
            text = show()
        except BaseException:
            self._breaker.abandoned(ticket)
            self.budget.give_back()
            raise
        if not text:  # what was to be shown is not wanted any more
            self._breaker.abandoned(ticket)
            self.budget.give_back()
            return PASS
        deadline = self._loop.time() + self._deadline_s
        retries = 0
        while True:
            answer = await self._call(text, context, ticket, deadline)
            if not isinstance(answer, _Failure):
                return answer
            ticket = await self._slot_to_retry(context.exchange, deadline) if retries < MAX_RETRIES else 0
            if not ticket:
                self._complaints.warn(answer.event, context, answer.cause)
                return Unjudged(answer.reason, self.name)
            retries += 1

    async def _call(self, text: str, context: Context, ticket: int, deadline: float) -> Answer | _Failure | None:
        """One call. None: there were too many."""
        loop, breaker = self._loop, self._breaker
        sent = loop.time()
        self._counts.sent(len(text))
        try:
            async with asyncio.timeout_at(min(deadline, sent + CALL_SHARE * self._deadline_s)):
                verdict = await self._check(text, context)
            if not isinstance(verdict, Verdict):
                raise TypeError(f"check returned a {type(verdict).__name__}, not a Verdict")  # noqa: TRY301
        except RateLimited:
            self._answered(ticket, sent)
            self.budget.refused()
            self._tell_rate()
            return None
        except Unauthorized as cause:
            self._counts.took(loop.time() - sent)
            self._complaints.error("moderator refuses to answer", context, cause)
            if breaker.refused(ticket, loop.time()):
                self.budget.dismiss()
            self._tell_state()
            return Unjudged("unauthorized", self.name)
        except TimeoutError as cause:
            self._failed(ticket, sent)
            return _Failure("timeout", "moderator gave no verdict in time", cause)
        except _UNAVAILABLE as cause:
            self._failed(ticket, sent)
            return _Failure("error", "moderator could not be asked", cause)
        except NoVerdict as cause:  # it has an answer: that this text is none for it
            self._answered(ticket, sent)
            self._complaints.warn("moderator cannot judge a text", context, cause)
            return Unjudged("error", self.name)
        except (Exception, asyncio.CancelledError) as cause:
            if isinstance(cause, asyncio.CancelledError) and being_cancelled():
                breaker.abandoned(ticket)
                raise
            self._complaints.error("moderator failed", context, cause)
            self._failed(ticket, sent)
            return Unjudged("error", self.name)
        self._answered(ticket, sent)
        return verdict

    async def _slot_to_retry(self, stream: str, deadline: float) -> int:
        """The breaker's ticket of a second call, with a slot for it; 0 if there is none, or none in time."""
        latest = deadline - LEAST_SHARE * self._deadline_s
        if self._loop.time() > latest or not self.available:
            return 0
        if not self.budget.try_take():
            try:
                async with asyncio.timeout_at(latest):
                    given = await self.budget.take(stream, again=True)
            except TimeoutError:
                return 0
            if not given:
                return 0
        return self._enter()

    def _enter(self) -> int:
        """The breaker's ticket for a call that has its slot, which is given back if there is none."""
        ticket = self._breaker.enter(self._loop.time())
        if not ticket:
            self.budget.give_back()
        elif self._breaker.state != self._told_state:
            self._tell_state()
        return ticket

    def _answered(self, ticket: int, sent: float) -> None:
        now = self._loop.time()
        self._counts.took(now - sent)
        if self._breaker.answered(ticket, now):
            self._complaints.log.info("moderator answers again")
            self._tell_state()
        self._tell_rate()

    def _failed(self, ticket: int, sent: float) -> None:
        now = self._loop.time()
        self._counts.took(now - sent)
        if self._breaker.failed(ticket, now):
            self._complaints.warn("moderator is not asked for a while")
            self.budget.dismiss()
            self._tell_state()

    def _tell_state(self) -> None:
        """Publish that the breaker has changed. (One that is open again since its probe was given up has not, for others.)"""
        before, self._told_state = self._told_state, self._breaker.state
        if before != self._told_state:
            self._events.publish("breaker", moderator=self.name, before=before, now=self._told_state)

    def _tell_rate(self) -> None:
        """Publish that the allowed rate has changed. The account of several processes hears of it a little later."""
        budget = self.budget
        change = self._throttle.look(budget.rate, budget.whole) if math.isfinite(budget.ceiling) else None
        if change is not None:
            before, now = round(change.before, 2), round(change.now, 2)
            self._events.publish("throttle", moderator=self.name, before=before, now=now, ceiling=budget.ceiling)

    def _standing(self) -> Standing:
        return Standing(self._breaker.state, self.budget.ceiling, self.budget.rate, self.budget.waiting)


class _Complaints:
    """What is logged of failures: of each kind one line in a while, which says how many were left out before it."""

    def __init__(self, log: Logger) -> None:
        self.log = log
        self._loop = asyncio.get_running_loop()
        self._said: dict[str, tuple[float, int]] = {}  # by event: until when nothing is said, and how much was not

    def warn(self, event: str, context: Context | None = None, cause: Exception | None = None) -> None:
        """Something that passes."""
        if (left_out := self._left_out(event)) is not None:
            self.log.warning(event, **left_out, **_described(context, cause))

    def error(self, event: str, context: Context, cause: BaseException) -> None:
        """Something that somebody has to mend. What is not foreseen comes with the places that it went through."""
        if (left_out := self._left_out(event)) is None:
            return
        if isinstance(cause, NoVerdict):
            self.log.error(event, **left_out, **_described(context, cause))
        else:
            self.log.exception(event, exc_info=cause, **left_out, **_described(context, None))

    def _left_out(self, event: str) -> dict[str, int] | None:
        now = self._loop.time()
        until, left_out = self._said.get(event, (-math.inf, 0))
        if now < until:
            self._said[event] = until, left_out + 1
            return None
        self._said[event] = now + QUIET_S, 0
        return {"left_out": left_out} if left_out else {}


def _described(context: Context | None, cause: Exception | None) -> dict[str, str]:
    """Fields for the log. Of foreign exceptions their type: their messages quote their input."""
    fields = {}
    if context is not None:
        fields["request_id"] = context.exchange
    if isinstance(cause, NoVerdict):
        fields["reason"] = str(cause)
        if cause.reference:
            fields["reference"] = cause.reference
    elif cause is not None:
        fields["reason"] = type(cause).__name__
    return fields
