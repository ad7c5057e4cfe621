"""A reply that is held until its request has been judged, while the upstream is already at work."""

from __future__ import annotations

import asyncio
from time import monotonic

from relay.errors import InternalError, RelayError
from relay.exchange import Exchange, Outcome
from relay.plugin import Sink
from relay.pure.openai import Chunk


class Hold:
    """A sink that lets nothing through before the verdict; if that is a refusal, nothing ever, and it is the answer.

    verdict: gives the refusal, or None. held_bytes: when so much is held, the upstream is paused.
    """

    __slots__ = ("_bytes", "_closed", "_ex", "_held", "_held_bytes", "_open", "_outcome", "_since", "_sink")

    def __init__(self, ex: Exchange, sink: Sink, verdict: asyncio.Task[RelayError | None], *, held_bytes: int) -> None:
        self._ex = ex
        self._sink = sink
        self._held: list[Chunk] = []
        self._bytes = 0
        self._held_bytes = held_bytes
        self._since: float | None = None  # when the first chunk came
        self._open = False
        self._closed = False  # nothing leaves any more
        self._outcome: Outcome | None = None  # the upstream's end, while we wait
        verdict.add_done_callback(self._decide)

    def feed(self, chunk: Chunk) -> None:
        if self._open:
            self._sink.feed(chunk)
        elif not self._closed:
            if self._since is None:
                self._since = monotonic()
            self._held.append(chunk)
            self._bytes += len(chunk.raw)
            if self._bytes > self._held_bytes:
                self._ex.pause(self)

    def end(self, outcome: Outcome) -> None:
        if self._open:
            self._sink.end(outcome)
        elif outcome.kind in ("client_gone", "drained"):
            self._close(outcome)  # nobody waits for the verdict any more
        elif not self._closed:
            self._outcome = outcome

    def _close(self, outcome: Outcome) -> None:
        if not self._closed:
            self._closed = True
            self._held.clear()
            self._sink.end(outcome)

    def _decide(self, verdict: asyncio.Task[RelayError | None]) -> None:
        if self._closed:
            return
        if verdict.cancelled():  # the exchange ends; if the reply has ended before, nobody else tells the sinks
            if self._outcome is not None:
                self._close(Outcome("client_gone"))
        elif refusal := InternalError() if verdict.exception() is not None else verdict.result():
            outcome = Outcome.of(refusal)
            self._close(outcome)  # at once: what comes before us may wait for verdicts of its own
            self._ex.stop(outcome)
        else:
            self._open = True
            held, self._held = self._held, []
            if self._since is not None:
                self._ex.moderated(monotonic() - self._since)
            for chunk in held:
                self._sink.feed(chunk)
            self._ex.resume(self)
            if self._outcome is not None:
                self._sink.end(self._outcome)
