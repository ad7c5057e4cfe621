"""A reply on its way: what the app keeps of it from the request to its line in the log."""

from __future__ import annotations

import asyncio

from relay.chain import Link
from relay.delivery import Replay, StreamDelivery, WholeDelivery
from relay.exchange import Exchange, Outcome
from relay.generation import Generation
from relay.plugin import Sink
from relay.silence import SilenceWatch
from relay.upstream import Answer
from relay.writer import Writer


class Open:
    """A reply on its way; and what stands for the upstream while its answer has not begun: to stop that is to give up asking.

    generation: on which it began. task: the handler's, to be cancelled only if the relay stops, or gives up. routed: its path is one that is served.
    """

    __slots__ = (
        "answer", "asked_at", "asking", "delivery", "drained", "entered", "ex", "generation", "given_up", "moderated_s",
        "routed", "silence", "sink", "status", "task", "writer",
    )  # fmt: skip

    def __init__(self, ex: Exchange, task: asyncio.Task[None] | None, generation: Generation, routed: bool) -> None:
        self.ex = ex
        self.task = task
        self.generation = generation
        self.routed = routed
        self.entered: list[Link] = []
        self.answer: Answer | None = None
        self.delivery: StreamDelivery | WholeDelivery | Replay | None = None
        self.writer: Writer | None = None
        self.sink: Sink | None = None  # where its chunks go first
        self.status = 0
        self.asked_at = 0.0  # `time.monotonic`
        self.moderated_s = 0.0  # up to then
        self.drained = False
        self.silence: SilenceWatch | None = None
        self.asking = self.given_up = False

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def stop(self, outcome: Outcome) -> None:
        if self.asking and self.task is not None:
            self.given_up = True
            self.task.cancel()
