"""The gate of a reply that is not streamed, when nobody has to be asked about it."""

from __future__ import annotations

from collections.abc import Callable

from relay.exchange import Exchange, Outcome
from relay.gate import Gate
from relay.plugin import Sink
from relay.pure.openai import Chunk
from relay.pure.whole import clean


class WholeGate:
    """A sink that lets a clean reply through, and has any other go through a gate with a guard, made for it."""

    __slots__ = ("_ex", "_finds", "_gate", "_open", "_report", "_said", "_sink")

    def __init__(
        self,
        ex: Exchange,
        sink: Sink,
        finds: Callable[[str], object],
        open: Callable[[Exchange, Sink], Gate],
        report: Callable[[Exchange, int], None],
    ) -> None:
        """finds: as in `relay.pure.whole.clean`. open: makes the gate.

        report: is called once with how many characters have left, unless there is a gate, which reports itself.
        """
        self._ex = ex
        self._sink = sink
        self._finds = finds
        self._open = open
        self._report = report
        self._gate: Gate | None = None
        self._said: int | None = None  # how much a clean reply has said

    def feed(self, chunk: Chunk) -> None:
        if self._said is not None:
            return  # it was all there is: nobody has looked for what another could go on with
        if self._gate is None:
            self._said = clean(chunk, self._finds)
            if self._said is not None:
                self._sink.feed(chunk)
                return
            self._gate = self._open(self._ex, self._sink)
        self._gate.feed(chunk)

    def end(self, outcome: Outcome) -> None:
        if self._gate is not None:
            self._gate.end(outcome)
            return
        try:
            self._report(self._ex, self._said or 0)
        finally:
            self._sink.end(outcome)
