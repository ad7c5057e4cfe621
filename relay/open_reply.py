"""A reply on its way: what the app keeps of it from the request to its line in the log, and what plugins are told then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from relay.delivery import Replay, StreamDelivery, WholeDelivery
from relay.exchange import Exchange, Outcome
from relay.generation import Generation
from relay.plugin import Sink
from relay.pure.openai import told_tokens
from relay.request import Request
from relay.section import Link
from relay.silence import SilenceWatch
from relay.told import Call, Told
from relay.upstream import Answer
from relay.writer import Writer

# The names and ids of an upstream's are some 40 characters long, and finish reasons a dozen.
MAX_CHARS: Final = 128


class Open:
    """A reply on its way; and what stands for the upstream while its answer has not begun: to stop that is to give up asking.

    generation: on which it began. routed: whether its path is one that is served. task: the handler's, to be cancelled only if the
    relay stops, or gives up. ended_at: when its handler was done, as `Exchange.started`.
    """

    __slots__ = (
        "answer", "asked_at", "asking", "delivery", "drained", "ended_at", "entered", "ex", "failed", "generation", "given_up",
        "method", "moderated_s", "routed", "silence", "sink", "status", "task", "writer",
    )  # fmt: skip

    def __init__(self, ex: Exchange, request: Request, generation: Generation, routed: bool) -> None:
        self.ex = ex
        self.task = request.task
        self.method = request.message.method
        self.generation = generation
        self.routed = routed
        self.entered: list[Link] = []
        self.answer: Answer | None = None
        self.delivery: StreamDelivery | WholeDelivery | Replay | None = None
        self.writer: Writer | None = None
        self.sink: Sink | None = None  # where its chunks go first
        self.status = 0
        self.asked_at = 0.0  # `time.monotonic`
        self.ended_at = 0.0
        self.moderated_s = 0.0  # up to then
        self.drained = False
        self.failed = False  # by a fault of ours, or by what a plugin gave us to send
        self.silence: SilenceWatch | None = None
        self.asking = self.given_up = False

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def stop(self, outcome: Outcome) -> None:
        if self.asking and self.task is not None:
            self.given_up = True
            self.task.cancel()

    def told(self) -> Told:
        """What plugins are told of it in `on_end`."""
        delivery = self.delivery if not isinstance(self.delivery, Replay) else None
        call = called(self.ex, self.asked_at, self.answer is not None, delivery) if self.ex.asked else None
        return Told(self.method, self.status, self.ended_at, call)


def called(ex: Exchange, asked_at: float, answered: bool, delivery: StreamDelivery | WholeDelivery | None) -> Call:
    """What is known of a call. delivery: None if nothing came of it."""
    if delivery is None:
        return Call(ex.upstream, asked_at, answered, None, None, None, None, {}, None, None)
    name, model = delivery.identity or (None, None)
    return Call(
        ex.upstream,
        asked_at,
        answered,
        delivery.first_at,
        delivery.ended_at,
        _named(name),
        _named(model),
        _reasons(delivery.finishes),
        *told_tokens(delivery.usage),
    )


def _named(given: Any) -> str | None:
    """An id or a name, if it is one."""
    return given if type(given) is str and len(given) <= MAX_CHARS and given.isprintable() else None


def _reasons(finishes: Mapping[int, Any]) -> Mapping[int, str]:
    return {index: reason for index, given in finishes.items() if (reason := _named(given)) is not None}
