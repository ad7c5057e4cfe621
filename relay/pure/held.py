"""What stands in a guard's queue: frames that wait, and the choices that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from relay.pure.openai import Chunk
from relay.pure.window import Run, Scanner


class State(Enum):
    LIVE = "live"
    FINISHED = "finished"
    BLOCKED = "blocked"


class Choice:
    """One choice of the reply."""

    __slots__ = ("ended", "index", "runs", "scanners", "started", "state")

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.state = State.LIVE
        self.started = False  # a frame of it has left
        self.runs: dict[str, Run] = {}  # the open ones, by surface
        self.ended: dict[str, Run] = {}  # the last ended one of each surface, for its tail
        self.scanners: dict[str, Sequence[Scanner]] = {}


class Held:
    """A frame in the queue, or the closing of a choice that we ended.

    choices: one entry a choice of the frame, in its order; a choice may stand there twice.
    chars: how many characters each entry says, and last those that belong to no choice.
    waits: it may leave when each run is cleared up to the position beside it.
    dropped: entries that may not leave.
    since: when it came; the caller's clock.
    """

    # What few frames have stands in the class: one of these is made for every frame.
    waits: tuple[tuple[Run, int], ...] = ()
    dropped: frozenset[int] = frozenset()
    closes: Choice | None = None

    def __init__(
        self, chunk: Chunk, choices: tuple[Choice, ...], chars: tuple[int, ...] = (), since: float = 0.0
    ) -> None:
        self.chunk = chunk
        self.choices = choices
        self.chars = chars
        self.since = since

    @classmethod
    def closing(cls, choice: Choice) -> Held:
        held = cls(NOTHING_SAID, ())
        held.closes = choice
        return held

    @property
    def size(self) -> int:
        return len(self.chunk.raw)

    @property
    def ready(self) -> bool:
        for run, need in self.waits:  # noqa: SIM110 - this runs for every frame
            if run.horizon < need:
                return False
        return True

    def waits_for(self, choice: Choice) -> bool:
        """Whether text of this choice keeps it."""
        return any(run.choice == choice.index and run.horizon < need for run, need in self.waits)

    def drop(self, choice: Choice) -> None:
        self.dropped |= {entry for entry, other in enumerate(self.choices) if other is choice}
        self.waits = tuple((run, need) for run, need in self.waits if run.choice != choice.index)


NOTHING_SAID: Final = Chunk(b"", b"")
