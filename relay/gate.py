"""The gate: a guard driven by real time and real moderators.

The guard (`relay.pure.guard`) decides; here its decisions are carried out. Released chunks go to the next sink at once,
from the upstream's read or from a verdict's task, whichever freed them. Windows are shown to the moderators in tasks of
the exchange; when no verdict comes in time, `on_failure` says what that means. The upstream is paused while the guard is
full, and stopped when no choice is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from relay.errors import guard_failure
from relay.exchange import Exchange, Outcome, OutcomeKind
from relay.log import Logger
from relay.metrics import ModerationTally
from relay.moderator import Action, Context, Moderator, Verdict
from relay.plugin import Sink
from relay.pure.guard import Guard
from relay.pure.openai import Chunk
from relay.pure.window import Window


@dataclass(frozen=True, slots=True)
class Judge:
    """The moderators that are asked, with their names, and what to do with what they say.

    thresholds: per label the scores from which it blocks and is reviewed, in place of the moderator's own suggestion.
    """

    moderators: Sequence[tuple[str, Moderator]]
    deadline_s: float
    on_failure: Literal["closed", "open"]
    review_blocks: bool
    thresholds: Mapping[str, tuple[int, int]]
    log: Logger

    async def check(self, text: str, context: Context, tally: ModerationTally) -> tuple[str, Verdict] | None:
        """The strictest verdict of all and whose it is; None if one moderator gave none."""
        checks = [self._ask(name, moderator, text, context, tally) for name, moderator in self.moderators]
        tally.checked += len(text)
        verdicts = await asyncio.gather(*checks)
        given = [(name, verdict) for name, verdict in verdicts if verdict is not None]
        strictest = max(given, key=lambda entry: entry[1].strictness, default=None)
        if strictest is not None and self.blocks(strictest[1]):
            return strictest
        return strictest if len(given) == len(verdicts) else None

    async def _ask(
        self, name: str, moderator: Moderator, text: str, context: Context, tally: ModerationTally
    ) -> tuple[str, Verdict | None]:
        outcome = "error"
        try:
            async with asyncio.timeout(self.deadline_s):
                verdict = self._by_policy(await moderator.check(text, context))
            outcome = verdict.action
        except TimeoutError:
            outcome = "timeout"
            self.log.warning("moderator gave no verdict in time", moderator=name, request_id=context.exchange)
            return name, None
        except Exception:
            self.log.exception("moderator failed", moderator=name, request_id=context.exchange)
            return name, None
        else:
            return name, verdict
        finally:
            tally.checks[name, outcome] = tally.checks.get((name, outcome), 0) + 1

    def _by_policy(self, verdict: Verdict) -> Verdict:
        scores = self.thresholds.get(verdict.label)
        if scores is None:
            return verdict
        blocks, reviews = scores
        action: Action = "block" if verdict.score >= blocks else "review" if verdict.score >= reviews else "pass"
        return replace(verdict, action=action)

    def blocks(self, verdict: Verdict) -> bool:
        return verdict.action == "block" or (verdict.action == "review" and self.review_blocks)


class Gate:
    """A sink that lets through what is cleared."""

    __slots__ = (
        "_ended", "_ex", "_guard", "_judge", "_outcome", "_paused", "_report", "_sink", "_stopped", "_tally", "_timer",
    )  # fmt: skip

    def __init__(
        self, ex: Exchange, sink: Sink, guard: Guard, judge: Judge, report: Callable[[Guard, ModerationTally], None]
    ) -> None:
        """`report` is called once, when all has left."""
        self._ex = ex
        self._sink = sink
        self._guard = guard
        self._judge = judge
        self._report = report
        self._tally = ModerationTally()
        self._outcome: Outcome | None = None  # the upstream's end, while we still hold something
        self._ended = False
        self._stopped = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, chunk: Chunk) -> None:
        self._guard.feed(chunk, self._ex.loop.time())
        self._act()

    def end(self, outcome: Outcome) -> None:
        self._outcome = outcome
        if outcome.kind == "client_gone":
            self._abandon()
            return
        self._guard.end(self._ex.loop.time())
        self._act()

    def _act(self) -> None:
        """Do what the guard has decided."""
        guard = self._guard
        if guard.released:
            released, guard.released = guard.released, []
            feed = self._sink.feed
            for chunk in released:
                feed(chunk)
        if guard.checks:
            checks, guard.checks = guard.checks, []
            for window in checks:
                self._ex.spawn(self._check(window))
        if guard.wants_pause is not self._paused:
            self._paused = guard.wants_pause
            (self._ex.pause if self._paused else self._ex.resume)(self)
        if guard.over and not self._stopped:
            self._stopped = True
            self._ex.stop(Outcome("filtered"))
        if self._outcome is not None and guard.finished:
            self._finish(self._outcome)
        else:
            self._set_timer()

    def _set_timer(self) -> None:
        due = self._guard.deadline()
        if self._timer is not None and (due is None or due < self._timer.when()):
            self._timer.cancel()
            self._timer = None
        if due is not None and self._timer is None:
            self._timer = self._ex.loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._guard.tick(self._ex.loop.time())
        self._act()

    async def _check(self, window: Window) -> None:
        judge = self._judge
        try:
            found = await judge.check(window.text, Context(self._ex.id, "response", window.run.surface), self._tally)
        except asyncio.CancelledError:
            self._abandon()
            raise
        now = self._ex.loop.time()
        if found is not None and judge.blocks(found[1]):
            self._guard.blocked(window, found[1].label, found[0], now)
        elif found is not None:
            self._guard.passed(window, now)
        elif judge.on_failure == "open":
            unverified = self._tally.unverified
            unverified["open_failure"] = unverified.get("open_failure", 0) + window.end - max(0, window.start)
            self._guard.passed(window, now)
        else:
            self._guard.failed(window, now)
        self._act()

    def _abandon(self) -> None:
        """The client is gone: nothing that is held is wanted any more."""
        self._guard.abandon()
        if self._outcome is not None:
            self._finish(self._outcome)

    def _finish(self, outcome: Outcome) -> None:
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        guard = self._guard
        self._report(guard, self._tally)
        if guard.failure is not None:
            kind: OutcomeKind = "upstream_error" if guard.failure == "upstream_malformed" else "filtered"
            outcome = replace(outcome, kind=kind, error=guard_failure(guard.failure))
        elif guard.cut and outcome.kind == "completed":
            outcome = replace(outcome, kind="filtered")
        self._sink.end(outcome)
