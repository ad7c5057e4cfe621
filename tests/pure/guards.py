"""Guards to be tested, and what they are fed and release.

Two words are forbidden. The lexicon knows them; a remote moderator is played by the tests, which give its verdicts.
"""

import json
from collections.abc import Iterable
from typing import Any

from relay.pure.guard import Guard
from relay.pure.openai import Chunk
from relay.pure.policy import Policy
from relay.pure.ruling import Ruling
from relay.pure.sse import Decoder
from relay.pure.window import Cutting, Window
from relay_plugins.lexicon import Manner, Phrases, PhraseScanner

BAD = "敏感词"
PASS = Ruling("pass")
BLOCK = Ruling("block", "label", 90, "model", "call-1")
PHRASES = Phrases([(word, Manner("word", "block")) for word in (BAD, "forbidden")], "lexicon")
REVIEWED = Phrases([(BAD, Manner("word", "review"))], "lexicon")

# K = 4; nothing ripens but with the end of a run, so that a test says when a window is cut.
CUTTING = Cutting(holdback_chars=4, first_chars=999, sentence_chars=999, max_chars=999, max_wait_s=10.0)


def lexicon(phrases: Phrases = PHRASES, **options: Any) -> Guard:
    policy = Policy(**{name: options.pop(name) for name in Policy.__slots__ if name in options})
    return Guard(policy, lambda: [PhraseScanner(phrases)], **options)


def remote(**options: Any) -> Guard:
    policy = Policy(**{"cutting": CUTTING} | {name: options.pop(name) for name in Policy.__slots__ if name in options})
    return Guard(policy, remote=True, **options)


def feed(guard: Guard, *events: bytes, now: float = 0.0) -> None:
    for chunk in Decoder(Chunk).feed(b"".join(events)):
        guard.feed(chunk, now)


def out(guard: Guard) -> list[bytes]:
    """What was released since this was asked last."""
    released, guard.released = guard.released, []
    return [chunk.raw for chunk in released]


def asked(guard: Guard) -> list[Window]:
    """The windows that were cut since this was asked last. Somebody has seen them: they grow no more."""
    checks, guard.checks = guard.checks, []
    for window in checks:
        guard.show(window, 0.0)
    return checks


def passed(guard: Guard) -> None:
    """All that is asked and will be is passed."""
    while windows := asked(guard):
        for window in windows:
            guard.judged(window, PASS, 0.0)


def whole(guard: Guard, *events: bytes) -> list[bytes]:
    """All that is released of a stream, with every window passed."""
    feed(guard, *events)
    guard.end(0.0)
    passed(guard)
    assert guard.finished
    return out(guard)


def said(raws: Iterable[bytes]) -> list[Any]:
    """What frames say: the choices' deltas and finish reasons."""
    shown: list[Any] = []
    for raw in raws:
        entries = json.loads(raw.removeprefix(b"data: "))["choices"]
        shown += [(entry["index"], entry.get("delta"), entry.get("finish_reason")) for entry in entries]
    return shown


def closed(index: int = 0, *, role: bool = True) -> list[Any]:
    """The frames that end a choice."""
    opening = [(index, {"role": "assistant", "content": ""}, None)] if role else []
    return [*opening, (index, {}, "content_filter")]


def choice(index: int, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason}
