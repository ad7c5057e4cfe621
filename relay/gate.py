"""The gate: a guard driven by real time and real moderators.

The guard (`relay.pure.guard`) decides; here its decisions are carried out. Released chunks go to the next sink at once,
from the upstream's read or from a verdict's task, whichever freed them. Windows are shown to the moderators in tasks of
the exchange; when no verdict comes in time, `on_failure` says what that means. The upstream is paused while the guard is
full, and stopped when no choice is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from relay.errors import InternalError, guard_failure
from relay.exchange import Exchange, Outcome, OutcomeKind
from relay.judge import Judge, Ruling, Unjudged
from relay.log import Logger
from relay.metrics import ModerationTally
from relay.moderator import Context
from relay.plugin import Sink
from relay.pure.guard import Guard
from relay.pure.openai import Chunk
from relay.pure.window import Window

Said = Ruling | Unjudged
Spawn = Callable[[Coroutine[Any, Any, Said]], asyncio.Task[Said]]


class Gate:
    """A sink that lets through what is cleared."""

    __slots__ = (
        "_broken", "_context", "_ended", "_ex", "_feed", "_guard", "_judge", "_log", "_now", "_on_failure", "_outcome", "_outlive",
        "_paused", "_report", "_reported", "_sink", "_stopped", "_tally", "_timer",
    )  # fmt: skip

    def __init__(
        self,
        ex: Exchange,
        sink: Sink,
        guard: Guard,
        judge: Judge | None,
        report: Callable[[Guard, ModerationTally], None],
        *,
        context: Context,
        on_failure: Literal["closed", "open"],
        log: Logger,
        outlive: Spawn | None = None,
    ) -> None:
        """`report` is called once, when all has left.

        judge: whoever says what becomes of windows; None for a guard that cuts none. context: of every window, but for
        its place. on_failure: whether what nobody judged leaves ("open") or the reply ends ("closed").
        outlive: starts the checks of a guard that holds nothing: its reply ends before its last verdicts, and the report
        waits for them. Without it checks end with the exchange.
        """
        self._ex = ex
        self._sink = sink
        self._feed = sink.feed  # bound once, for all frames
        self._now = ex.loop.time
        self._guard = guard
        self._judge = judge
        self._context = context
        self._on_failure = on_failure
        self._log = log
        self._report = report
        self._tally = ModerationTally()
        self._outlive = outlive
        self._outcome: Outcome | None = None  # the upstream's end, while we still hold something
        self._broken: Outcome | None = None  # a fault of our own
        self._ended = False
        self._reported = False
        self._stopped = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, chunk: Chunk) -> None:
        guard = self._guard
        lane, said = guard.lane, chunk.said
        # Nearly all frames of a stream say more of what the one before has said.
        if (
            lane is not None
            and said is not None
            and lane.index == said[0]
            and (not guard.remote or (self._timer is not None and not self._paused))
        ):
            now = self._now()
            if not lane.say(chunk, said[1], now, self._feed):
                guard.look(now)
                self._act()
            return
        guard.feed(chunk, self._now())
        # Most frames only join those that wait.
        if (
            guard.over
            or guard.checks
            or (guard.remote and self._timer is None)
            or guard.wants_pause is not self._paused
        ):
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
        elif outcome.kind in ("drained", "exhausted"):  # there is no time, or nobody, to wait for verdicts
            self._guard.give_up()
            self._release()
            self._finish(outcome)
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
        """See to it that somebody looks when the next window is due. One who looks too early sets it anew."""
        if self._timer is None and (due := self._guard.deadline()) is not None:
            self._timer = self._ex.loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._step(self._guard.tick)

    def _check(self, window: Window) -> None:
        """Have a window judged, in a task that calls back."""
        assert self._judge is not None, "windows are cut for a judge only"
        run = window.run
        context = self._context
        if context.surface != run.surface or context.choice != run.choice:
            context = self._context = replace(context, surface=run.surface, choice=run.choice)
        judging = self._judge.check(partial(self._show, window), context, self._tally)
        task = (self._outlive or self._ex.spawn)(judging)
        # A callback, since a task that is cancelled before its first step says nothing itself.
        task.add_done_callback(partial(self._checked, window))

    def _show(self, window: Window) -> str:
        """What a moderator is about to be shown. What comes from now on is for the next window, which has its own time."""
        text = self._guard.show(window, self._now())
        if not self._ended:
            self._set_timer()
        return text

    def _checked(self, window: Window, task: asyncio.Task[Said]) -> None:
        if task.cancelled():
            # The exchange has ended and this reply has not: nobody reads it. Or the relay stops.
            self._outlive = None
            self._abandon()
        elif not self._ended or self._outlive is not None:
            self._step(self._judged, window, task)
        if self._ended:
            self._settle()

    def _judged(self, window: Window, task: asyncio.Task[Said], now: float) -> None:
        said = task.result()
        if isinstance(said, Ruling):
            self._guard.judged(window, said, now)
        elif self._on_failure == "open":
            self._guard.unjudged(window, said.reason, said.heard, now)
        else:
            self._guard.failed(window, now)

    def _step(self, decide: Callable[..., None], *facts: object) -> None:
        """One decision of the guard outside `feed` and `end`, where the chain would not hear what it raises."""
        try:
            decide(*facts, self._now())
            self._act()
        except Exception:  # noqa: BLE001 - logged whole; what it raises is for nobody else
            self._log.exception("moderation failed", request_id=self._ex.id)
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
                failed = Outcome.of(guard_failure(guard.failure))
                # One that was stopped because it had to be is not one that could not be served.
                kind: OutcomeKind = "filtered" if guard.failure == "content_filter" else failed.kind
                outcome = replace(outcome, kind=kind, error=failed.error)
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
