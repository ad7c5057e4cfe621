"""A reply, remembered as it passes.

Nothing is copied: what is remembered of a chunk is the bytes that it has anyway, or the chunk itself if it is known to say
text and nothing else, so that nobody has parsed it. Only of the others it is looked whether they finish a choice, and how;
an upstream's have been parsed by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.exchange import Outcome
from relay.plugin import Sink
from relay.pure.openai import Chunk
from relay.reading import IndexUnclearError, events, finished

# The model has said what it was asked for; `length`: up to the bound that the request, or the model, has set. Of another
# word ("content_filter", "error", "abort", a server's own) nobody knows whether it would be said again.
WHOLE: Final = frozenset({"stop", "length", "tool_calls", "function_call"})
_NO_REASONS: Final = (None, "", "null")  # servers say them in frames that finish nothing
# What remembering a chunk takes beside its bytes: the objects that it is; 200 in CPython 3.11.
CHUNK_BYTES: Final = 224


class Room:
    """What all replies that are being remembered may still take together, in bytes."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size


@dataclass(frozen=True, slots=True, repr=False)
class Said:
    """A reply: the bytes of its chunks, and those of the event that ended it."""

    data: bytes
    done: bytes


class Recorder:
    """A sink that passes on everything, and remembers it up to `max_bytes`, as long as there is room beside the others.

    choices: how many there are to be. streamed: whether they come in events. Who makes one has to `release` it.
    """

    __slots__ = ("_finished", "_left", "_missing", "_outcome", "_parts", "_room", "_sink", "_streamed", "_taken")

    def __init__(self, sink: Sink, room: Room, *, max_bytes: int, choices: int, streamed: bool) -> None:
        self._sink = sink
        self._streamed = streamed
        self._room = room
        self._taken = 0  # of the room
        self._left = max_bytes  # of its own; negative: nothing more is remembered
        self._parts: list[bytes | Chunk] = []
        self._missing = choices
        self._finished: frozenset[int] = frozenset()
        self._outcome: Outcome | None = None

    def feed(self, chunk: Chunk) -> None:
        if self._left >= 0:
            size = chunk.size
            self._left -= size
            self._taken += size + CHUNK_BYTES
            self._room.left -= size + CHUNK_BYTES
            if self._left < 0 or self._room.left < 0:
                self.release()
            elif chunk.said is not None:
                self._parts.append(chunk)
            else:
                self._parts.append(chunk.raw)
                self._look(chunk)
        self._sink.feed(chunk)

    def end(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._sink.end(outcome)

    def said(self) -> Said | None:
        """All that was said; None if it is not to be said again."""
        outcome = self._outcome
        if self._left < 0 or outcome is None or outcome.kind != "completed" or outcome.error is not None:
            return None
        if len(self._finished) < self._missing:
            return None
        # What is no event was said by a plugin behind this one, and would be read in another way when it is joined.
        sound = all(map(_is_event, self._parts)) if self._streamed else len(self._parts) == 1
        return Said(b"".join(map(_raw, self._parts)), outcome.done) if sound else None

    def release(self) -> None:
        """Forget what was said, and remember nothing more."""
        self._room.left += self._taken
        self._taken = 0
        self._left = -1
        self._parts = []

    def _look(self, chunk: Chunk) -> None:
        """Whether it finishes a choice, and as it should."""
        try:
            frame = chunk.json or {}
            finishes = finished(frame)
        except (IndexUnclearError, RecursionError):
            self.release()
            return
        if finishes:
            self._finished = self._finished.union(finishes)
            reasons = [choice.get("finish_reason") for choice in frame["choices"] if type(choice) is dict]
            if any(type(reason) is not str or reason not in WHOLE for reason in reasons if reason not in _NO_REASONS):
                self.release()


def _raw(part: bytes | Chunk) -> bytes:
    return part if isinstance(part, bytes) else part.raw


def _is_event(part: bytes | Chunk) -> bool:
    """Whether it is one event and nothing else; a chunk of which is known what it says is."""
    if not isinstance(part, bytes):
        return True
    return [part] == [event.raw for event in events(part)]
