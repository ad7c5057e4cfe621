"""The text of a reply, for a plugin that changes it: as a stream for each choice, whatever chunks it comes in.

    class Swap(Plugin):
        word: str
        by: str

        def on_stream(self, ex, sink):
            return TextSink(sink, self._swap)

        def _swap(self, text, last):
            *whole, rest = text.split(self.word)
            held = "" if last else begun(rest, self.word)
            return self.by.join([*whole, rest.removesuffix(held)]), held

What is not changed leaves as the bytes that it came as.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

from relay.exchange import Outcome
from relay.plugin import Sink
from relay.pure.openai import Chunk, Frame, dump

Rewrite = Callable[[str, bool], tuple[str, str]]
"""What may leave of a text, changed or not, and what of it is held. The text begins with what was held the last time, and
with `last` nothing comes after it, so nothing may be held."""

# What holds more than this is taken for one that never lets go.
MAX_HELD_CHARS: Final = 65_536

# A frame of which nobody wants these any more says only what is put into it.
_ENDINGS: Final = ("usage", "obfuscation")
_ITS_TEXT: Final = ("index", "delta", "finish_reason")


class TextSink:
    """Wraps `sink`: the content of each choice goes through `rewrite`, of streams and of whole replies.

    `content` that is a string, and nothing else: arrays of parts, a refusal, reasoning and the arguments of tools pass as
    they are. `rewrite` does not wait, and what it
    raises is the plugin's.
    """

    __slots__ = ("_held", "_last", "_rewrite", "_sink")

    def __init__(self, sink: Sink, rewrite: Rewrite) -> None:
        self._sink = sink
        self._rewrite = rewrite
        self._held: dict[int, str] = {}  # by choice
        self._last: dict[int, Frame] = {}  # the frame that said what is held, or said some of it

    def feed(self, chunk: Chunk) -> None:
        said, done = chunk.said, None
        if said is not None:  # and nothing else, which is not even parsed if it may leave as it is
            index, text = said
            done = self._rewritten(self._held.pop(index, "") + text, False)
            if done == (text, ""):
                self._sink.feed(chunk)
                return
        frame = chunk.json
        if frame is None:
            self._sink.feed(chunk)
        else:
            self._change(chunk, frame, done)

    def end(self, outcome: Outcome) -> None:
        if outcome.kind != "client_gone":
            for index in tuple(self._held):
                self._flush(index)
        self._sink.end(outcome)

    def _change(self, chunk: Chunk, frame: Frame, done: tuple[str, str] | None) -> None:
        """Pass on a chunk of which some text may have to be another. done: what its one text is rewritten to, if it is."""
        changed: Frame | None = None
        says = frame.get("usage") is not None  # or whether anything else is left of it beside text that is held
        choices = frame.get("choices")
        for place, choice in enumerate(choices if isinstance(choices, list) else ()):
            index = choice.get("index")
            index = index if isinstance(index, int) else 0
            part = "message" if isinstance(choice.get("message"), dict) else "delta"
            said = choice.get(part)
            text = said.get("content") if isinstance(said, dict) else None
            ends = part == "message" or choice.get("finish_reason") is not None
            if isinstance(text, str):
                leaves, held = done or self._rewritten(self._held.pop(index, "") + text, ends)
                if held:
                    self._held[index], self._last[index] = held, frame
                if leaves != text:
                    changed = copy.deepcopy(frame) if changed is None else changed
                    changed["choices"][place][part]["content"] = leaves
                    beside = any(value is not None and key not in _ITS_TEXT for key, value in choice.items())
                    says = says or bool(leaves) or ends or beside or len(said) > 1
                    continue
            elif ends:
                self._flush(index)
            says = True
        if changed is None:
            self._sink.feed(chunk)
        elif says:
            self._sink.feed(Chunk.body(dump(changed)) if _is_body(chunk) else Chunk.event(changed))

    def _flush(self, index: int) -> None:
        """Nothing more of a choice comes: what was held of it leaves in a chunk of its own."""
        held, frame = self._held.pop(index, ""), self._last.pop(index, None)
        if not held or frame is None:
            return
        leaves, _ = self._rewritten(held, True)
        if leaves:
            said = {key: value for key, value in frame.items() if key not in _ENDINGS}
            choice: dict[str, Any] = {"index": index, "delta": {"content": leaves}, "finish_reason": None}
            self._sink.feed(Chunk.event({**said, "choices": [choice]}))

    def _rewritten(self, text: str, last: bool) -> tuple[str, str]:
        leaves, held = self._rewrite(text, last)
        if len(held) > MAX_HELD_CHARS and not last:
            more, held = self._rewrite(held, True)
            leaves, last = leaves + more, True
        return (leaves + held, "") if last else (leaves, held)


def begun(text: str, word: str) -> str:
    """The longest end of `text` that is a beginning of `word`, but not the whole of it: what more may come of."""
    return next(
        (word[:length] for length in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:length])), ""
    )


def _is_body(chunk: Chunk) -> bool:
    return chunk.raw == chunk.data
