"""Witnesses of what happens on either side of a plugin, and a probe round the sink that it makes.

A witness is a plugin that writes down what the relay does with it; the relay keeps its promises to a witness whatever the
plugin beside it does. The probe sees what the plugin itself does, before the relay makes good for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar, Final

from relay.errors import Reject, RelayError
from relay.exchange import CALLER, Exchange, Key, Operation, Outcome
from relay.keys import API_KEY, ApiKey
from relay.plugin import OPERATIONS, Plugin, Reply, Sink
from relay.pure.openai import Chunk

CALLED: Final = "tester"
"""The name of the key that asks, for plugins that need to know."""


class Called(Plugin):
    """Stands before a plugin where `auth` would."""

    gives: ClassVar[tuple[Key[Any], ...]] = (CALLER, API_KEY)
    serves: ClassVar[frozenset[Operation]] = frozenset(OPERATIONS)

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex[CALLER] = CALLED
        ex[API_KEY] = ApiKey(name=CALLED)
        return None


class Wrapping:
    """A sink that passes everything on."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def feed(self, chunk: Chunk) -> None:
        self.sink.feed(chunk)

    def end(self, outcome: Outcome) -> None:
        self.sink.end(outcome)


class Witness(Plugin):
    """Writes down what happens to it, and passes everything on.

    seen: where: ("on_request", its name) and the like. raises: what its `on_request` refuses by; answers: its early
    answer. patience: turns of the loop that its hooks take. outcome: as `on_end` saw it.
    """

    serves: ClassVar[frozenset[Operation]] = frozenset(OPERATIONS)

    name: str
    seen: Any
    raises: Any = None
    answers: Any = None
    patience: int = 0
    outcome: Outcome | None = field(init=False, default=None)

    async def on_request(self, ex: Exchange) -> Reply | None:
        await self._wait()
        if isinstance(self.raises, RelayError):
            raise self.raises
        self.seen.append(("on_request", self.name))
        answers: Reply | None = self.answers
        return answers

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        self.seen.append(("on_stream", self.name))
        return _Watching(self, sink)

    async def on_end(self, ex: Exchange) -> None:
        self.seen.append(("on_end", self.name))
        await self._wait()
        self.outcome = ex.outcome
        self.seen.append(("settled", self.name))

    async def _wait(self) -> None:
        for _ in range(self.patience):
            await asyncio.sleep(0)


class _Watching(Wrapping):
    def __init__(self, witness: Witness, sink: Sink) -> None:
        super().__init__(sink)
        self.witness = witness

    def feed(self, chunk: Chunk) -> None:
        self.witness.seen.append(("feed", self.witness.name))
        super().feed(chunk)

    def end(self, outcome: Outcome) -> None:
        self.witness.seen.append(("end", self.witness.name))
        super().end(outcome)


def not_you() -> Reject:
    """What a later plugin refuses by."""
    return Reject("Not you.", code="not_you")


# Of what was said then something is missing.
_FAILURES: Final = frozenset({"unavailable", "upstream_error", "drained", "internal_error"})

OnStream = Callable[[Exchange, Sink], Sink]


class Probe:
    """Stands round the sink that a plugin makes.

    made: it has made one. ends_in, ends_out: how often that was ended, and passed an end on. late: how often it fed after
    that. wrong: what it fed that cannot be sent, in words. failed: it was told that the reply has; hid: it passed that on as
    completed. keeps: whether the chunks it was fed are kept, to tell (`changed`) which of them it has changed.
    """

    def __init__(self, on_stream: OnStream, *, keeps: bool = True) -> None:
        self._on_stream = on_stream
        self._keeps = keeps
        self._shown: list[tuple[Chunk, bytes, str]] = []
        self._streams = False
        self.wrong: set[str] = set()
        self.made = self.hid = False
        self.failed = False
        self.ends_in = self.ends_out = self.late = 0

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        self._streams = ex.operation == "chat" and ex.request.stream
        below = _Below(self, sink)
        made = self._on_stream(ex, below)
        if made is below:
            return sink
        if callable(getattr(made, "feed", None)) and callable(getattr(made, "end", None)):
            self.made = True
            return _Above(self, made)
        return made  # no sink, as the relay will say

    @property
    def changed(self) -> bool:
        """Whether a chunk that it was fed says another thing now."""
        return any(chunk.raw != raw or json.dumps(chunk.json) != said for chunk, raw, said in self._shown)

    def sound(self, chunk: object) -> bool:
        """Whether what it feeds is a chunk at all; one of its own has to have the form of the reply."""
        if not isinstance(chunk, Chunk):
            self.wrong.add(f"fed a {type(chunk).__name__}, which is no chunk")
            return False
        if self._keeps and not any(chunk is shown for shown, _, _ in self._shown):
            if not self._streams:
                if chunk.json is None or not chunk.raw.lstrip().startswith(b"{"):
                    self.wrong.add("fed what is no JSON object to a reply that is not streamed")
            elif not chunk.raw.endswith((b"\n\n", b"\r\n\r\n")):
                self.wrong.add("fed what is no event to a stream")
            elif chunk.data.strip() == b"[DONE]":
                self.wrong.add("fed a [DONE] of its own")
        return True

    def show(self, chunk: Chunk) -> None:
        if self._keeps:
            self._shown.append((chunk, chunk.raw, json.dumps(chunk.json)))


class _Above(Wrapping):
    """The plugin's sink, as what is nearer to the upstream sees it."""

    def __init__(self, probe: Probe, sink: Sink) -> None:
        super().__init__(sink)
        self._probe = probe

    def feed(self, chunk: Chunk) -> None:
        self._probe.show(chunk)
        super().feed(chunk)

    def end(self, outcome: Outcome) -> None:
        self._probe.ends_in += 1
        self._probe.failed = outcome.kind in _FAILURES
        super().end(outcome)


class _Below(Wrapping):
    """What is nearer to the client, as the plugin's sink sees it."""

    def __init__(self, probe: Probe, sink: Sink) -> None:
        super().__init__(sink)
        self._probe = probe

    def feed(self, chunk: Chunk) -> None:
        self._probe.late += bool(self._probe.ends_out)
        if self._probe.sound(chunk):
            super().feed(chunk)

    def end(self, outcome: Outcome) -> None:
        self._probe.ends_out += 1
        self._probe.hid |= self._probe.failed and outcome.kind == "completed"
        super().end(outcome)
