"""The gate: a guard driven by real time and real moderators.

The guard (`relay.pure.guard`) decides; here its decisions are carried out. Released chunks go to the next sink at once,
from the upstream's read or from a verdict's task, whichever freed them. Windows are shown to the moderators in tasks of
the exchange; when no verdict comes in time, `on_failure` says what that means. The upstream is paused while the guard is
full, and stopped when no choice is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from relay.errors import InternalError, being_cancelled, guard_failure
from relay.exchange import Exchange, Outcome, OutcomeKind
from relay.log import Logger
from relay.metrics import ModerationTally
from relay.moderator import STRICTNESS, Action, Context, Moderator, Verdict
from relay.plugin import Sink
from relay.pure.guard import MAX_VIOLATIONS, Guard, Violation
from relay.pure.openai import Chunk
from relay.pure.window import Window

Found = tuple[str, Verdict] | None
"""The strictest verdict of all and whose it is; None if there is no verdict."""

Spawn = Callable[[Coroutine[Any, Any, Found]], asyncio.Task[Found]]


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

    async def check(self, text: str, context: Context, tally: ModerationTally) -> Found:
        """The strictest verdict of all and whose it is; None if one moderator gave none."""
        checks = [self._ask(name, moderator, text, context, tally) for name, moderator in self.moderators]
        tally.checked += len(text)
        verdicts = await asyncio.gather(*checks)
        given = [(name, verdict) for name, verdict in verdicts if verdict is not None]
        strictest = max(given, key=lambda entry: STRICTNESS[entry[1].action], default=None)
        if strictest is not None and self.blocks(strictest[1]):
            return strictest
        return strictest if len(given) == len(verdicts) else None

    async def _ask(
        self, name: str, moderator: Moderator, text: str, context: Context, tally: ModerationTally
    ) -> tuple[str, Verdict | None]:
        verdict = None
        try:
            async with asyncio.timeout(self.deadline_s):
                verdict = self._by_policy(await moderator.check(text, context))
            outcome: str = verdict.action
        except TimeoutError:
            outcome = "timeout"
            self.log.warning("moderator gave no verdict in time", moderator=name, request_id=context.exchange)
        except (Exception, asyncio.CancelledError) as cause:
            if isinstance(cause, asyncio.CancelledError) and being_cancelled():
                raise
            outcome = "error"
            self.log.exception("moderator failed", moderator=name, request_id=context.exchange)
        tally.checks[name, outcome] = tally.checks.get((name, outcome), 0) + 1
        return name, verdict

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
        "_broken", "_cut_to", "_ended", "_ex", "_guard", "_judge", "_now", "_outcome", "_outlive", "_paused", "_report", "_reported",
        "_sink", "_stopped", "_tally", "_timer",
    )  # fmt: skip

    def __init__(
        self,
        ex: Exchange,
        sink: Sink,
        guard: Guard,
        judge: Judge,
        report: Callable[[Guard, ModerationTally], None],
        *,
        outlive: Spawn | None = None,
    ) -> None:
        """`report` is called once, when all has left.

        outlive: starts the checks of a guard that holds nothing: its reply ends before its last verdicts, and the report
        waits for them. Without it checks end with the exchange.
        """
        self._ex = ex
        self._sink = sink
        self._now = ex.loop.time
        self._guard = guard
        self._judge = judge
        self._report = report
        self._tally = ModerationTally()
        self._outlive = outlive
        self._cut_to: dict[tuple[int | None, str], int] = {}  # where the last window of each surface ended
        self._outcome: Outcome | None = None  # the upstream's end, while we still hold something
        self._broken: Outcome | None = None  # a fault of our own
        self._ended = False
        self._reported = False
        self._stopped = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, chunk: Chunk) -> None:
        guard = self._guard
        guard.feed(chunk, self._now())
        if guard.over or guard.remote:
            self._act()
            return
        released = guard.released
        if released:
            feed = self._sink.feed
            for each in released:
                feed(each)
            released.clear()

    def end(self, outcome: Outcome) -> None:
        self._outcome = outcome
        if outcome.kind == "client_gone":
            self._abandon()
        elif self._broken is not None:
            self._finish(self._broken)
        else:
            self._guard.end(self._now())
            self._act()

    def _act(self) -> None:
        """Do what the guard has decided."""
        guard = self._guard
        if guard.released:
            self._release()
        if guard.checks:
            checks, guard.checks = guard.checks, []
            for window in checks:
                self._check(window)
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

    def _release(self) -> None:
        guard = self._guard
        released, guard.released = guard.released, []
        feed = self._sink.feed
        for chunk in released:
            feed(chunk)

    def _set_timer(self) -> None:
        due = self._guard.deadline()
        if self._timer is not None and (due is None or due < self._timer.when()):
            self._timer.cancel()
            self._timer = None
        if due is not None and self._timer is None:
            self._timer = self._ex.loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._step(self._guard.tick)

    def _check(self, window: Window) -> None:
        """Have a window judged, in a task that calls back."""
        run = window.run
        context = Context(self._ex.id, "response", run.surface)
        task = (self._outlive or self._ex.spawn)(self._judge.check(window.text, context, self._tally))
        surface = run.choice, run.surface
        new_chars = window.end - self._cut_to.get(surface, 0)
        self._cut_to[surface] = window.end
        # A callback, since a task that is cancelled before its first step says nothing itself.
        task.add_done_callback(partial(self._checked, window, new_chars))

    def _checked(self, window: Window, new_chars: int, task: asyncio.Task[Found]) -> None:
        if task.cancelled():
            # The exchange has ended and this reply has not: nobody reads it. Or the relay stops.
            self._outlive = None
            self._abandon()
        elif not self._ended or self._outlive is not None:
            self._step(self._judged, window, new_chars, task)
        if self._ended:
            self._settle()

    def _judged(self, window: Window, new_chars: int, task: asyncio.Task[Found], now: float) -> None:
        guard, judge = self._guard, self._judge
        found = task.result()
        if found is None and judge.on_failure == "closed":
            guard.failed(window, now)
        elif found is None:
            unverified = self._tally.unverified
            unverified["open_failure"] = unverified.get("open_failure", 0) + new_chars
            guard.passed(window, now)
        elif judge.blocks(found[1]):
            guard.blocked(window, found[1].label, found[0], now)
        else:
            moderator, verdict = found
            violations = guard.tally.violations
            if verdict.action != "pass" and len(violations) < MAX_VIOLATIONS:
                run = window.run
                violations.append(
                    Violation(run.choice, run.surface, max(0, window.start), verdict.label, moderator, False)
                )
            guard.passed(window, now)

    def _step(self, decide: Callable[..., None], *facts: object) -> None:
        """One decision of the guard outside `feed` and `end`, where the chain would not hear what it raises."""
        try:
            decide(*facts, self._now())
            self._act()
        except Exception:
            self._judge.log.exception("moderation failed", request_id=self._ex.id)
            self._broken = Outcome("internal_error", InternalError())
            self._guard.abandon()
            self._ex.stop(self._broken)
            if self._outcome is not None:
                self._finish(self._broken)

    def _abandon(self) -> None:
        """The client is gone: nothing that is held is wanted any more."""
        self._guard.abandon()
        if self._outcome is not None:
            self._finish(Outcome("client_gone"))

    def _finish(self, outcome: Outcome) -> None:
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        guard = self._guard
        if outcome.kind not in ("client_gone", "internal_error"):
            if guard.failure is not None:
                kind: OutcomeKind = "upstream_error" if guard.failure == "upstream_malformed" else "filtered"
                outcome = replace(outcome, kind=kind, error=guard_failure(guard.failure))
            elif guard.cut and outcome.kind == "completed":
                outcome = replace(outcome, kind="filtered")
        try:
            self._settle()
        finally:
            self._sink.end(outcome)

    def _settle(self) -> None:
        """Report, once there is nothing more to come."""
        if not self._reported and (self._outlive is None or not self._guard.in_flight):
            self._reported = True
            self._report(self._guard, self._tally)
