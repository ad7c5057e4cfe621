"""Replies that a plugin is tried with: a text in all kinds of pieces, and what models say beside text."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from relay.errors import UpstreamError
from relay.testing import frames

TEXT: Final = "Hello, wörld! 你好,世界。 It is 9 o'clock: <b>go</b>. 🙂"
"""What the upstream says, unless another answer is given."""

MAX_CUTS: Final = 120
RANDOM_CUTS: Final = 20
LONG_EVENTS: Final = 500
LONG_EVENT_CHARS: Final = 4_000


def stream(pieces: Iterable[str]) -> bytes:
    """All bytes of a stream that says these."""
    return b"".join(frames.stream(pieces))


def in_turns(text: str) -> bytes:
    """All bytes of a stream of two choices that both say a text, an event in turn; the second is an event behind."""
    size = max(1, len(text) // MAX_CUTS)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    first, second = ([*frames.stream(pieces, index=index)][:-1] for index in (0, 1))
    pairs = zip([*first, b""], [b"", *second], strict=True)
    return b"".join([*itertools.chain.from_iterable(pairs), frames.done()])


def divided(text: str) -> Iterator[tuple[str, Sequence[str]]]:
    """A text in pieces: characters, each cut in two, and at random."""
    yield "a character an event", list(text)
    chance = random.Random(1)  # noqa: S311 - the same cuts every time
    places = range(1, len(text))
    for place in some(places, MAX_CUTS):
        yield f"cut before character {place}", [text[:place], text[place:]]
    for number in range(RANDOM_CUTS if len(text) > 3 else 0):
        cuts = [0, *sorted(chance.sample(places, chance.randint(2, max(2, len(places) // 2)))), len(text)]
        yield f"cut at random, {number}", [text[start:end] for start, end in itertools.pairwise(cuts)]


def some(places: range, most: int) -> Sequence[int]:
    """So many of them at most, all over."""
    return places if len(places) <= most else [places[number * len(places) // most] for number in range(most)]


FAILED: Final = UpstreamError("The model server failed.", code="upstream_error", kind="status")

EVERY_KIND: Final = (
    frames.comment("keep-alive"),
    frames.role(),
    frames.role(index=1),
    frames.text("One ", index=0),
    frames.text("Two ", index=1),
    frames.delta({"reasoning_content": "Let me see."}),
    frames.delta({"content": None, "refusal": "I cannot."}, index=1),
    frames.tool("", name="look_up"),
    frames.tool('{"where":'),
    frames.tool('"here"}'),
    frames.finish("tool_calls"),
    frames.finish(index=1),
    frames.usage(),
    frames.done(),
)
ODD: Final = (
    frames.chunk([]),  # as some servers begin
    frames.text(""),
    frames.delta({}),
    frames.chunk([{"index": 0, "delta": None, "finish_reason": None}]),
    frames.chunk([{"index": 0, "delta": {"content": [{"type": "text", "text": "part"}]}, "finish_reason": None}]),
    frames.chunk([{"index": 0, "finish_reason": "stop"}]),
    frames.done(),
)
NO_TEXT: Final = json.dumps(
    {"id": "1", "object": "chat.completion", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "stop"}
    ]}
).encode()  # fmt: skip


def long_reply() -> Iterator[bytes]:
    """The events of a stream of two megabytes, but for its [DONE]."""
    yield frames.role()
    for number in range(LONG_EVENTS):
        yield frames.text(f"{number} is a number. ".ljust(24).ljust(LONG_EVENT_CHARS, "ab cd efg "[number % 10]))
    yield frames.finish()
