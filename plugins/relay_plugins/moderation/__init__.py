"""`moderation`: shows requests and replies to moderators and lets nothing through that they block.

Replies pass the gate (`relay.gate`); what it promises stands in docs/moderation.md.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from relay.consultant import Consultant
from relay.degraded import degraded
from relay.errors import RelayError
from relay.exchange import STOPPED_BY, VIOLATIONS, Exchange, Key
from relay.gate import Gate, Said
from relay.judge import Judge, Unjudged
from relay.labels import LabelPolicy, Thresholds
from relay.log import Logger
from relay.metrics import OTHER, Metrics, ModerationTally
from relay.moderator import Context, Moderator, ScanningModerator
from relay.options import Table
from relay.plugin import Plugin, Reply, Services, Sink
from relay.pure import tokens
from relay.pure.guard import Guard
from relay.pure.policy import Policy
from relay.pure.request import ChatRequest
from relay.pure.tally import Tally
from relay.pure.transcript import MAX_SHOWN_CHARS
from relay.pure.window import Cutting, Scanner
from relay_plugins.moderation.parallel import Hold
from relay_plugins.moderation.requests import Requests, context_of
from relay_plugins.moderation.violations import tell
from relay_plugins.moderation.whole import WholeGate

# So many checks may wait for their turn when their replies have ended; more would only be a longer list.
MAX_LATE = 1000
_NOBODY = Context("", "response", "")  # for a gate that shows nobody anything

Count = Annotated[int, Meta(ge=1)]
MAX_SCORE = 100
Score = Annotated[int, Meta(ge=0, le=MAX_SCORE + 1)]  # one more: never


class Window(Table, frozen=True, kw_only=True):
    """When a window of a reply is cut for moderators that have to be asked: whichever comes first."""

    first_chars: Count = 32
    sentence_chars: Count = 64
    max_chars: Annotated[int, Meta(ge=1, le=MAX_SHOWN_CHARS)] = 400
    max_wait_ms: Count = 1200


class Label(Table, frozen=True, kw_only=True):
    """From which score, 0 to 100, a label blocks, is masked or is worth a review, whatever the moderator suggests."""

    block: Score = 101
    mask: Score = 101
    review: Score = 101

    def __post_init__(self) -> None:
        given = [score for score in (self.review, self.mask, self.block) if score <= MAX_SCORE]
        if not given:
            raise ValueError("says nothing; give block, mask or review a score, or leave the label out")
        if sorted(set(given)) != given:
            raise ValueError("review has to be below mask, and mask below block")


class Moderation(Plugin):
    """Moderates requests and replies.

    share_verdicts: for `cache_s` verdicts on pieces of requests are kept in the store too, for all processes; of the text
    no more goes there than a hash of it and of the moderator's options. Of moderators only whose calls are limited.
    """

    moderators: tuple[Moderator, ...]
    request: Literal["before", "parallel", "off"] = "before"
    response: Literal["strict", "trailing", "shadow", "off"] = "strict"
    holdback_chars: Annotated[int, Meta(ge=1, le=1000)] = 16
    window: Window = Window()
    depth: Annotated[int, Meta(ge=1, le=16)] = 2
    deadline_ms: Count = 2000
    held_bytes: Annotated[int, Meta(ge=4096)] = 262_144
    context_chars: Annotated[int, Meta(ge=0, le=5000)] = 0
    on_failure: Literal["closed", "open"] = "closed"
    on_review: Literal["pass", "block"] = "pass"
    on_violation: Literal["finish", "replace", "error"] = "finish"
    notice: str = ""
    unknown_fields: Literal["check", "drop", "pass"] = "check"
    opaque: Literal["pass", "drop"] = "pass"
    labels: dict[str, Label] = dataclasses.field(default_factory=dict)
    cache_s: Annotated[int, Meta(ge=0)] = 300
    share_verdicts: bool = True
    lead_chars: Annotated[int, Meta(ge=0)] = 200

    guards: ClassVar[bool] = True
    tells: ClassVar[tuple[Key[Any], ...]] = (STOPPED_BY, VIOLATIONS)

    _policy: Policy = dataclasses.field(init=False)
    _scanning: tuple[ScanningModerator, ...] = dataclasses.field(init=False)
    _finds: Callable[[str], object] = dataclasses.field(init=False)  # what they find in a text that is there as a whole
    _asked: tuple[tuple[str, Moderator], ...] = dataclasses.field(init=False)
    _judge: Judge | None = dataclasses.field(init=False)
    _requests: Requests = dataclasses.field(init=False)
    _verdict: Key[asyncio.Task[RelayError | None]] = dataclasses.field(init=False)
    _late: set[asyncio.Task[Said]] = dataclasses.field(init=False)  # checks that outlive their replies
    _metrics: Metrics = dataclasses.field(init=False)
    _log: Logger = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if not self.moderators:
            raise ValueError('moderators is empty; add one, as in { use = "lexicon", words = ["…"] }')
        if self.on_violation == "replace" and not self.notice:
            raise ValueError('on_violation = "replace" needs a notice = "…" to put in the place of the text')
        self._scanning = tuple(each for each in self.moderators if isinstance(each, ScanningModerator))
        self._finds = self._scanning[0].find if len(self._scanning) == 1 else self._any_finds
        self._asked = _named([each for each in self.moderators if not isinstance(each, ScanningModerator)])
        if self.response == "trailing" and not self._asked:
            raise ValueError('response = "trailing" is for moderators that have to be asked; use "strict"')
        if self.response == "trailing" and self.on_violation == "replace":
            raise ValueError(
                'in trailing mode a client takes back what it has, the notice too; use on_violation = "finish"'
            )
        self._policy = Policy(
            cutting=Cutting(
                holdback_chars=self.holdback_chars,
                first_chars=self.window.first_chars,
                sentence_chars=self.window.sentence_chars,
                max_chars=self.window.max_chars,
                max_wait_s=self.window.max_wait_ms / 1000,
                context_chars=self.context_chars,
                lead_chars=self.lead_chars if self.response == "trailing" else 0,
            ),
            # One that remembers what it was shown has to be shown it in order.
            depth=1 if any(each.in_order for _, each in self._asked) else self.depth,
            held_bytes=self.held_bytes,
            on_violation=self.on_violation,
            notice=self.notice,
            unknown_fields=self.unknown_fields,
            opaque=self.opaque,
            hold=self.response != "shadow",
        )
        self._verdict = Key("moderation.verdict", asyncio.Task)
        self._late = set()

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        self._metrics = services.metrics
        self._log = services.log
        services.metrics.add_moderator("guard", {"evasion"})
        for name, moderator in self._asked:
            services.metrics.add_moderator(name, moderator.labels | self.labels.keys())
        self._judge = self._new_judge(services) if self._asked else None
        self._requests = Requests(
            self._scanning,
            self._judge,
            overlap=self._policy.cutting.shown_again,
            on_failure=self.on_failure,
            log=services.log,
            metrics=services.metrics,
        )
        async with AsyncExitStack() as stack:
            try:
                for moderator in self.moderators:
                    await stack.enter_async_context(moderator.lifespan(services))
                yield
            finally:
                for check in self._late:
                    check.cancel()
                if self._late:
                    await asyncio.wait(self._late)
                if self._judge is not None:
                    await self._judge.close()

    def _new_judge(self, services: Services) -> Judge:
        pulse = services.pulse
        consultants = [
            Consultant(
                name,
                moderator,
                deadline_s=self.deadline_ms / 1000,
                cache_s=self.cache_s,
                store=services.store,
                replicas=lambda: pulse.replicas if pulse is not None else 1,
                share_verdicts=self.share_verdicts,
                log=self._log,
                metrics=self._metrics,
                events=services.events,
            )
            for name, moderator in self._asked
        ]
        thresholds = {name: Thresholds(label.block, label.mask, label.review) for name, label in self.labels.items()}
        return Judge(consultants, LabelPolicy(thresholds, self.on_review))

    # Requests

    async def on_request(self, ex: Exchange) -> Reply | None:
        if self.request == "before":
            if not self._requests.passes(ex):
                await self._requests.check(ex)
        elif self.request == "parallel":
            scanned = await self._requests.scan(ex)  # for nothing, and before an upstream is paid
            ex[self._verdict] = ex.spawn(self._requests.refusal(ex, scanned))
        if self._judge is not None and self._judge.degraded:
            degraded(ex, self._metrics, "moderation")
        return None

    # Replies

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        if self.request == "parallel":
            sink = Hold(ex, sink, ex[self._verdict], held_bytes=self.held_bytes)
        if self.response == "off":
            return sink
        if self._judge is None and not ex.request.stream:
            return WholeGate(ex, sink, self._finds, self._gate, self._report_clean)
        return self._gate(ex, sink)

    def _gate(self, ex: Exchange, sink: Sink) -> Gate:
        request = ex.request
        guard = Guard(
            self._policy,
            self._scanners,
            remote=self._judge is not None,
            choices=request.choices,
            usage=request.wants_usage,
            prompt_tokens=partial(_estimated, request),
            whole=not request.stream,
        )
        return Gate(
            ex,
            sink,
            guard,
            self._judge,
            partial(self._report_guarded, ex),
            context=context_of(ex, "response") if self._judge is not None else _NOBODY,
            on_failure=self.on_failure,
            log=self._log,
            outlive=self._check_late if self.response == "shadow" else None,
        )

    def _check_late(self, check: Coroutine[Any, Any, Said]) -> asyncio.Task[Said]:
        loop = asyncio.get_running_loop()
        if len(self._late) < MAX_LATE:
            task = loop.create_task(check)
        else:
            check.close()
            task = loop.create_task(_too_late())
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return task

    def _scanners(self) -> Sequence[Scanner]:
        return [moderator.scanner() for moderator in self._scanning]

    def _any_finds(self, text: str) -> bool:
        return any(moderator.find(text) for moderator in self._scanning)

    def _report_clean(self, ex: Exchange, said: int) -> None:
        """A reply of which all has left as it came, and at once."""
        if self.request == "parallel" or self.response == "shadow":
            tally = Tally(came=said, released=said, first_hold_s=0.0 if said else None)
            self._report(ex, tally, ModerationTally())
        else:
            ex.moderated(0.0)
            self._metrics.passed(said)

    def _report_guarded(self, ex: Exchange, guard: Guard, tally: ModerationTally) -> None:
        self._report(ex, guard.tally, tally)

    def _report(self, ex: Exchange, counted: Tally, tally: ModerationTally) -> None:
        """The sums of one reply into the metrics, its violations into the log."""
        # What passed behind a prompt that did not has left the gate, and no more than that.
        held = self.request == "parallel" and not _passed(ex[self._verdict])
        released = 0 if held else counted.released
        tally.came += counted.came
        tally.released = released
        tally.blocked = min(counted.blocked, counted.came - released)
        tally.withheld = counted.came - released - tally.blocked
        if self._scanning:
            tally.checked += counted.came
        tally.longest_hold_s = counted.longest_hold_s
        ex.moderated(counted.first_hold_s or 0.0)
        # Of what nobody judged, some may have been dropped all the same.
        tally.unverified = {reason: min(chars, released) for reason, chars in counted.unverified().items()}
        if self.response == "shadow":
            tally.unverified = {"shadow": released}
        for found in counted.violations:
            tell(found, ex, self._log, tally)
            if found.action == "block" and self.response != "shadow":
                ex[STOPPED_BY] = found.moderator, found.label
        self._metrics.moderated(tally)


def _estimated(request: ChatRequest) -> int:
    return round(sum(tokens.estimate(text) for _, text in request.texts()))


async def _too_late() -> Said:
    return Unjudged("rate_limited", OTHER)


def _passed(verdict: asyncio.Task[RelayError | None]) -> bool:
    """Whether a request may go on. It may not yet while there is no verdict."""
    return verdict.done() and not verdict.cancelled() and verdict.exception() is None and verdict.result() is None


def _named(moderators: Sequence[Moderator]) -> tuple[tuple[str, Moderator], ...]:
    """Each with its name in logs and metrics; of several of one kind the later ones are numbered."""
    named: dict[str, Moderator] = {}
    for moderator in moderators:
        alike = sum(other.known_as == moderator.known_as for other in named.values())
        named[f"{moderator.known_as}-{alike + 1}" if alike else moderator.known_as] = moderator
    return tuple(named.items())
