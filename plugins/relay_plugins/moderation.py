"""`moderation`: shows requests and replies to moderators and lets nothing through that they block.

Replies pass the gate (`relay.gate`); what it promises stands in docs/moderation.md.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, Literal

from msgspec import Meta

from relay.errors import ModerationError, Reject
from relay.exchange import Exchange
from relay.gate import Found, Gate, Judge
from relay.log import Logger
from relay.metrics import Metrics, ModerationTally
from relay.moderator import Context, Moderator, ScanningModerator
from relay.options import Table
from relay.plugin import Plugin, Reply, Services, Sink
from relay.pure import tokens
from relay.pure.fold import fold
from relay.pure.guard import Guard
from relay.pure.policy import Policy
from relay.pure.window import MAX_WINDOW_CHARS, Cutting, Hit, Scanner

Count = Annotated[int, Meta(ge=1)]

# Longer texts are read in slices, and many texts in batches, so that other streams get their turn in between.
SLICE_CHARS = 65_536
SLICE_TEXTS = 512


class Window(Table, frozen=True, kw_only=True):
    """When a window of a reply is cut for moderators that have to be asked: whichever comes first."""

    first_chars: Count = 32
    sentence_chars: Count = 64
    max_chars: Annotated[int, Meta(ge=1, le=MAX_WINDOW_CHARS)] = 400
    max_wait_ms: Count = 1200


class Label(Table, frozen=True, kw_only=True):
    """From which score, 0 to 100, a label blocks or is worth a review, whatever the moderator suggests."""

    block: Annotated[int, Meta(ge=0, le=101)] = 101
    review: Annotated[int, Meta(ge=0, le=101)] = 101


class Moderation(Plugin):
    """Moderates requests and replies.

    Not built yet, and refused: request = "parallel" and response = "trailing". `cache_s` and `lead_chars` belong to what
    is not built yet and change nothing.
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
    lead_chars: Annotated[int, Meta(ge=0)] = 200

    _policy: Policy = dataclasses.field(init=False)
    _scanning: tuple[ScanningModerator, ...] = dataclasses.field(init=False)
    _asked: tuple[tuple[str, Moderator], ...] = dataclasses.field(init=False)
    _judge: Judge = dataclasses.field(init=False)
    _late: set[asyncio.Task[Found]] = dataclasses.field(init=False)  # checks that outlive their replies
    _metrics: Metrics = dataclasses.field(init=False)
    _log: Logger = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if not self.moderators:
            raise ValueError('moderators is empty; add one, as in { use = "lexicon", words = ["…"] }')
        if self.request == "parallel":
            raise ValueError('request = "parallel" is not built yet; use "before"')
        if self.response == "trailing":
            raise ValueError('response = "trailing" is not built yet; use "strict"')
        if self.on_violation == "replace" and not self.notice:
            raise ValueError('on_violation = "replace" needs a notice = "…" to put in the place of the text')
        self._policy = Policy(
            cutting=Cutting(
                holdback_chars=self.holdback_chars,
                first_chars=self.window.first_chars,
                sentence_chars=self.window.sentence_chars,
                max_chars=self.window.max_chars,
                max_wait_s=self.window.max_wait_ms / 1000,
                context_chars=self.context_chars,
            ),
            depth=self.depth,
            held_bytes=self.held_bytes,
            on_violation=self.on_violation,
            notice=self.notice,
            unknown_fields=self.unknown_fields,
            opaque=self.opaque,
            hold=self.response != "shadow",
        )
        self._scanning = tuple(each for each in self.moderators if isinstance(each, ScanningModerator))
        self._asked = tuple(
            (each.known_as, each) for each in self.moderators if not isinstance(each, ScanningModerator)
        )
        self._late = set()

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        self._metrics = services.metrics
        self._log = services.log
        self._judge = Judge(
            self._asked,
            deadline_s=self.deadline_ms / 1000,
            on_failure=self.on_failure,
            review_blocks=self.on_review == "block",
            thresholds={name: (label.block, label.review) for name, label in self.labels.items()},
            log=services.log,
        )
        services.metrics.add_moderator("guard", {"evasion"})
        for name, _ in self._asked:
            services.metrics.add_moderator(name, self.labels)
        async with AsyncExitStack() as stack:
            for moderator in self.moderators:
                await stack.enter_async_context(moderator.lifespan(services))
            try:
                yield
            finally:
                for check in self._late:
                    check.cancel()
                if self._late:
                    await asyncio.wait(self._late)

    # Requests

    async def on_request(self, ex: Exchange) -> Reply | None:
        if self.request == "off":
            return None
        tally = ModerationTally()
        try:
            for number, (place, text) in enumerate(ex.request.texts(), 1):
                if number % SLICE_TEXTS == 0:
                    await asyncio.sleep(0)
                await self._check_text(ex, place, text, tally)
        finally:
            self._metrics.moderated(tally)
        return None

    async def _check_text(self, ex: Exchange, place: str, text: str, tally: ModerationTally) -> None:
        """Raises Reject if the text may not go on."""
        copy = fold(text[:SLICE_CHARS])
        for start in range(SLICE_CHARS, len(text), SLICE_CHARS):
            await asyncio.sleep(0)
            copy += fold(text[start : start + SLICE_CHARS])
        tally.checked += len(copy)
        for moderator in self._scanning:
            for hit in moderator.find(copy):
                self._found(ex, place, hit, tally)
                if hit.blocks:
                    raise refused_prompt()
        if self._asked:
            overlap = max(self.holdback_chars - 1, self.context_chars)
            for start in range(0, max(1, len(text) - overlap), MAX_WINDOW_CHARS - overlap):
                piece = text[start : start + MAX_WINDOW_CHARS]
                await self._ask(ex, place, start, piece, len(piece) - (overlap if start else 0), tally)

    async def _ask(
        self, ex: Exchange, place: str, start: int, text: str, new_chars: int, tally: ModerationTally
    ) -> None:
        found = await self._judge.check(text, Context(ex.id, "request", place), tally)
        if found is None:
            if self.on_failure == "closed":
                raise ModerationError(
                    "Content moderation does not answer; nothing is passed on unchecked. Ask again later.",
                    code="moderation_unavailable",
                    acted=False,
                )
            tally.unverified["open_failure"] = tally.unverified.get("open_failure", 0) + new_chars
            return
        moderator, verdict = found
        blocks = self._judge.blocks(verdict)
        if verdict.action != "pass":
            self._found(ex, place, Hit(start, start + len(text), verdict.label, blocks, moderator), tally)
        if blocks:
            raise refused_prompt()

    def _found(self, ex: Exchange, place: str, hit: Hit, tally: ModerationTally) -> None:
        violation = (hit.moderator, hit.label)
        tally.violations[violation] = tally.violations.get(violation, 0) + 1
        self._log.info(
            "violation",
            request_id=ex.id,
            direction="request",
            place=place,
            position=hit.start,
            label=hit.label,
            moderator=hit.moderator,
            action="block" if hit.blocks else "review",
        )

    # Replies

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        if self.response == "off":
            return sink
        request = ex.request
        guard = Guard(
            self._policy,
            self._scanners,
            remote=bool(self._asked),
            choices=request.choices,
            usage=request.wants_usage,
            prompt_tokens=round(sum(tokens.estimate(text) for _, text in request.texts()))
            if request.wants_usage
            else 0,
            whole=not request.stream,
        )

        def report(guard: Guard, tally: ModerationTally) -> None:
            self._report(ex, guard, tally)

        if self.response == "shadow":
            return Gate(ex, sink, guard, self._judge, report, outlive=self._check_late)
        return Gate(ex, sink, guard, self._judge, report)

    def _check_late(self, check: Coroutine[Any, Any, Found]) -> asyncio.Task[Found]:
        task = asyncio.get_running_loop().create_task(check)
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return task

    def _scanners(self) -> Sequence[Scanner]:
        return [moderator.scanner() for moderator in self._scanning]

    def _report(self, ex: Exchange, guard: Guard, tally: ModerationTally) -> None:
        """The sums of one reply into the metrics, its violations into the log."""
        counted = guard.tally
        tally.came += counted.came
        tally.released = counted.released
        tally.blocked = min(counted.blocked, counted.came - counted.released)
        tally.withheld = counted.came - counted.released - tally.blocked
        if self._scanning:
            tally.checked += counted.came
        tally.longest_hold_s = counted.longest_hold_s
        tally.unverified |= counted.unverified
        if self.response == "shadow":
            tally.unverified = {"shadow": counted.released}
        elif "open_failure" in tally.unverified:
            # Of what nobody judged, some may have been dropped all the same.
            tally.unverified["open_failure"] = min(tally.unverified["open_failure"], counted.released)
        for found in counted.violations:
            tally.violations[found.moderator, found.label] = tally.violations.get((found.moderator, found.label), 0) + 1
            self._log.info(
                "violation",
                request_id=ex.id,
                direction="response",
                choice=found.choice,
                place=found.surface,
                position=found.position,
                label=found.label,
                moderator=found.moderator,
                action="block" if found.blocks else "review",
            )
        self._metrics.moderated(tally)


def refused_prompt() -> Reject:
    return Reject(
        "The request was stopped by content moderation; change the text and ask again.",
        code="content_filter",
        param="messages",
    )
