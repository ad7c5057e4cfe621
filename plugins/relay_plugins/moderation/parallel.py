"""A reply that is held until its request has been judged, while the upstream is already at work."""

from __future__ import annotations

import asyncio

from relay.errors import InternalError, RelayError
from relay.exchange import Exchange, Outcome
from relay.plugin import Sink
from relay.pure.openai import Chunk


class Hold:
    """A sink that lets nothing through before the verdict; if that is a refusal, nothing ever, and it is the answer.

    verdict: gives the refusal, or None. held_bytes: when so much is held, the upstream is paused.
    """

    __slots__ = ("_bytes", "_ex", "_held", "_held_bytes", "_open", "_outcome", "_refusal", "_sink")

    def __init__(self, ex: Exchange, sink: Sink, verdict: asyncio.Task[RelayError | None], *, held_bytes: int) -> None:
        self._ex = ex
        self._sink = sink
        self._held: list[Chunk] = []
        self._bytes = 0
        self._held_bytes = held_bytes
        self._open = False
        self._refusal: RelayError | None = None
        self._outcome: Outcome | None = None
        if verdict.done():
            self._decide(verdict)
        else:
            verdict.add_done_callback(self._decide)

    def feed(self, chunk: Chunk) -> None:
        if self._open:
            self._sink.feed(chunk)
        elif self._refusal is None:
            self._held.append(chunk)
            self._bytes += len(chunk.raw)
            if self._bytes > self._held_bytes:
                self._ex.pause(self)

    def end(self, outcome: Outcome) -> None:
        gone = outcome.kind == "client_gone"
        if not gone and self._refusal is not None:
            self._sink.end(_refused(self._refusal))
        elif gone or self._open:
            self._held.clear()
            self._sink.end(outcome)
        else:
            self._outcome = outcome

    def _decide(self, verdict: asyncio.Task[RelayError | None]) -> None:
        held, self._held = self._held, []
        if verdict.cancelled():
            self._outcome = self._outcome and Outcome("client_gone")  # nobody waits for it any more
        elif refusal := InternalError() if verdict.exception() is not None else verdict.result():
            self._refusal = refusal
            self._ex.stop(_refused(refusal))
        else:
            self._open = True
            for chunk in held:
                self._sink.feed(chunk)
            self._ex.resume(self)
        if self._outcome is not None:
            self.end(self._outcome)


def _refused(refusal: RelayError) -> Outcome:
    return Outcome("internal_error" if isinstance(refusal, InternalError) else "refused", refusal)
