"""The way back past a quota: text is counted as it is released, and none is released that is not covered.

A reservation covers an instalment of the reply. Before that is used up more is asked for, while the stream goes on;
what comes before the answer and is not covered waits. If there is no more the reply ends there, to the character where
characters are counted: every choice with `finish_reason: "length"`, then a chunk without choices that says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from relay.errors import InternalError, RelayError
from relay.exchange import Exchange, Outcome
from relay.failpoint import hit
from relay.plugin import Sink
from relay.pure.meter import Count
from relay.pure.openai import Chunk
from relay_plugins.quota.bill import Bill
from relay_plugins.quota.shortened import Ending, shortened_body, shortened_event

Extend = Callable[[int], Coroutine[Any, Any, RelayError | None]]
"""Has the bill covered up to so many units, or as far as there are any; the error says why it could not be tried."""


# Ends that do not wait for what is held: nobody reads it, or there is no time.
_AT_ONCE = frozenset({"client_gone", "drained", "internal_error"})


class Meter:
    """A sink that lets through what is paid for."""

    __slots__ = (
        "_asking", "_bill", "_count", "_ended", "_ending", "_ex", "_extend", "_held", "_instalment", "_mark", "_outcome",
        "_over", "_sink", "_sought",
    )  # fmt: skip

    def __init__(self, ex: Exchange, sink: Sink, bill: Bill, extend: Extend, *, instalment: int) -> None:
        """instalment: how much more is asked for at a time, in units."""
        self._ex = ex
        self._sink = sink
        self._bill = bill
        self._count: Count = bill.count
        self._extend = extend
        self._instalment = instalment
        self._ending = Ending(ex.request)
        self._held: list[Chunk] = []  # not covered, or behind what is not
        self._asking: asyncio.Task[RelayError | None] | None = None
        self._sought = 0  # units that were asked for last
        self._over: Outcome | None = None  # how the reply has ended here: what says something does not leave any more
        self._ended = False
        self._outcome: Outcome | None = None  # the upstream's end, while something is held
        self._mark = 0  # characters: up to here a chunk is covered, and no more need be asked for
        self._set_mark()

    # The sink

    def feed(self, chunk: Chunk) -> None:
        if self._held or self._over is not None:
            self._keep_back(chunk)
            return
        count = self._count
        count.feed(chunk)
        if count.characters <= self._mark:
            self._let_go(chunk)
        elif self._is_covered:
            self._let_go(chunk)
            hit("mid_stream")
            if not self._ending.whole:  # then nothing more comes
                self._look_ahead()
        else:
            want = self._bill.spent + self._instalment
            self._uncount(chunk)
            self._held.append(chunk)
            self._ex.pause(self)
            self._ask(want)

    def end(self, outcome: Outcome) -> None:
        if self._asking is not None and self._held and outcome.kind not in _AT_ONCE:
            self._outcome = outcome  # what is held may still be paid for
        else:
            self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        if not self._ended:
            self._ended = True
            self._held.clear()
            # Whoever is before us may have been at its end already, and has not heard how this reply ends.
            if self._over is not None and outcome.error is None and outcome.kind in ("completed", "filtered"):
                outcome = replace(self._over, done=outcome.done)
            self._sink.end(outcome)

    def _let_go(self, chunk: Chunk) -> None:
        if chunk.said is None:
            self._ending.note(chunk)
        self._sink.feed(chunk)

    def _keep_back(self, chunk: Chunk) -> None:
        if self._over is None:
            self._held.append(chunk)
        elif self._ending.is_notice(chunk):  # a word of the relay's own, such as what to take back
            self._sink.feed(chunk)

    # What is covered

    @property
    def _is_covered(self) -> bool:
        return self._bill.spent <= self._bill.covered

    def _uncount(self, chunk: Chunk) -> None:
        one = Count()
        one.feed(chunk)
        self._count.characters -= one.characters
        self._count.bytes -= one.bytes

    def _look_ahead(self) -> None:
        """Ask for more in time, and set the mark to when to look again."""
        bill = self._bill
        soon = bill.covered - self._instalment // 2
        # Who has got less than he sought has got all that there is.
        if bill.spent > soon and self._sought <= bill.covered:
            self._ask(bill.spent + self._instalment)
        self._set_mark()

    def _set_mark(self) -> None:
        bill = self._bill
        waits = self._asking is not None or self._sought > bill.covered
        self._mark = bill.sure_of(bill.covered if waits else bill.covered - self._instalment // 2)

    def _ask(self, want: int) -> None:
        """Have more covered, in a task that calls back."""
        if self._asking is None:
            self._sought = want
            self._asking = self._ex.spawn(self._extend(want))
            self._asking.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[RelayError | None]) -> None:
        self._asking = None
        if self._ended:
            return
        if task.cancelled():  # the exchange ends; if the reply has ended before, nobody else tells the sinks
            if self._outcome is not None:
                self._end(Outcome("client_gone"))
            return
        fault = task.exception()
        error = task.result() if fault is None else InternalError()
        if error is None:
            self._release()
        elif self._held:  # what is released is covered, and who needs more asks once more
            self._break_off(error)

    def _release(self) -> None:
        """Let go of what is covered now."""
        held, self._held = self._held, []
        for position, chunk in enumerate(held):
            if self._over is not None:
                self._keep_back(chunk)
                continue
            self._count.feed(chunk)
            if self._is_covered:
                self._let_go(chunk)
                continue
            need = self._bill.spent
            self._uncount(chunk)
            if self._sought < need:
                self._held = held[position:]
                self._ask(need + self._instalment)
                return
            self._exhaust(chunk)  # so much was asked for and not got
        self._set_mark()
        self._ex.resume(self)
        if self._outcome is not None:
            self._end(self._outcome)

    # The end of the quota

    def _exhaust(self, chunk: Chunk) -> None:
        """There is no more. Of this chunk may leave what is still covered."""
        self._over = Outcome("exhausted")
        bill = self._bill
        room = bill.sure_of(bill.covered) - self._count.characters
        if self._ending.whole:
            self._say(shortened_body(chunk, max(0, room)))
        else:
            if room > 0 and (cut := shortened_event(chunk, room)) is not None:
                self._say(cut)
            for frame in self._ending.frames(chunk, self._count):
                self._say(frame)
        self._ex.stop(self._over)

    def _say(self, chunk: Chunk) -> None:
        """What is our own counts too."""
        self._count.feed(chunk)
        self._let_go(chunk)

    def _break_off(self, error: RelayError) -> None:
        """Nobody can say whether there is more, and it must not go on without that."""
        self._over = Outcome.of(error)
        self._held.clear()
        self._ex.stop(self._over)
        if self._outcome is not None:
            self._end(self._over)
