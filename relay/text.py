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

import re
from collections.abc import Callable, Container
from typing import Any, Final, Self

import orjson

from relay.exchange import Outcome
from relay.plugin import Sink
from relay.pure.openai import Chunk, Frame, dump, load_exactly
from relay.pure.request import MAX_CHOICES
from relay.pure.slots import Slot, number_of, slots
from relay.pure.surfaces import MESSAGE_METADATA, is_finished

Rewrite = Callable[[str, bool], tuple[str, str]]
"""What may leave of a text, changed or not, and what of it is held. The text begins with what was held the last time, and
with `last` nothing comes after it, so nothing may be held."""

Begin = Callable[[str], Rewrite | None]
"""The function for a text that begins on this surface; None: it passes as it is."""

# What holds more than this is taken for one that never lets go.
MAX_HELD_CHARS: Final = 65_536
# Nobody calls so many tools; the oldest texts of a choice that says more are taken for ended.
MAX_TEXTS: Final = 128
# A frame of which some text is held waits whole, so that it may leave as it came, unless more of it than this could go.
MAX_WAITING_CHARS: Final = 32

# A frame of which nobody wants these any more says only what is put into it.
_ENDINGS: Final = ("usage", "obfuscation")
_ITS_TEXT: Final = ("index", "delta", "finish_reason")
# A client joins the pieces of these by their index, whatever stands between them.
_JOINED: Final = ("tool_calls.", "function_call.", "message.")
# Only what has so many digits in a row may be a number that orjson does not keep.
_LONG: Final = re.compile(rb"[0-9]{17}")


class _Text:
    """What one choice says on one surface, until it says something else.

    held: what the function holds of it. chunk: the one that said some of that. frames: those that wait whole, with what each
    says, in which all that is held was said; free: what might leave of the first of them.

    Of a message in the frames of a stream: length and hash of all that it said in the last frame, if each frame so far said
    that again, and shown: what left of it there. A negative length: each says what is new.
    """

    __slots__ = ("chunk", "frames", "free", "hash", "held", "length", "rewrite", "shown")

    def __init__(self, rewrite: Rewrite) -> None:
        self.rewrite = rewrite
        self.held = ""
        self.chunk: Chunk | None = None
        self.frames: list[tuple[Chunk, str]] = []
        self.free = ""
        self.length, self.hash, self.shown = 0, hash(""), ""

    def add(self, chunk: Chunk, text: str, last: bool) -> str:
        """What leaves once `text` has come, in this chunk."""
        if not text and not last:
            return ""
        leaves, held = self.rewrite(self.held + text, last)
        if len(held) > MAX_HELD_CHARS and not last:
            more, held = self.rewrite(held, True)
            leaves, last = leaves + more, True
        self.held, self.chunk = ("", None) if last or not held else (held, chunk)
        return leaves + held if last else leaves

    def rest(self) -> str:
        """What leaves of what is held, when nothing more comes."""
        return "".join(self.rewrite(self.held, True))


class TextSink:
    """Wraps `sink`: the content of each choice goes through `rewrite`, of streams and of whole replies.

    `content`, as a string or as the texts of an array, and nothing else: a refusal, reasoning and the arguments of tools
    pass as they are (`TextSink.each` is for those). A frame that says nothing but content and of which some is held waits
    whole, unless it is long, so that it leaves as it came if nothing of it is changed. `rewrite` does not wait, and what it
    raises is the plugin's.
    """

    __slots__ = ("_begin", "_sink", "_texts")

    def __init__(self, sink: Sink, rewrite: Rewrite) -> None:
        self._sink = sink
        self._begin: Begin = lambda surface: rewrite if surface == "content" else None
        self._texts: dict[int, dict[str, _Text]] = {}  # by choice and surface

    @classmethod
    def each(cls, sink: Sink, begin: Begin) -> Self:
        """One that asks for the function of each text as that begins: one that remembers something begins anew for each.

        `begin` is told the surface: `content`, `reasoning_content`, `reasoning`, `reasoning_details`, `refusal`, `text`,
        `audio.transcript`, `function_call.arguments`, and of a tool call with its number `tool_calls.0.arguments` or
        `.input`; parts of an array that are not its text have their name behind it (`content.thinking`). It may answer None: that
        text passes. A text ends with its choice, and when the choice goes on to something else: so it leaves before that. That
        of a tool call ends with its choice only, since clients join it by its index.
        """
        made = cls(sink, _never)
        made._begin = begin
        return made

    def feed(self, chunk: Chunk) -> None:
        said = chunk.said
        if said is not None:  # and nothing else, which is not even parsed if it may leave as it is
            index, text = said
            texts = self._texts.get(index)
            if not text:
                self._sink.feed(chunk)
                return
            if (
                texts is None
                or (len(texts) == 1 and "content" in texts)  # as it is with most
                or all(surface == "content" or surface.startswith(_JOINED) for surface in texts)
            ):
                self._say(chunk, index, text)
                self._bound()
                return
        frame = chunk.json
        if frame is None:
            self._sink.feed(chunk)
        else:
            self._change(chunk, frame)
            self._bound()

    def end(self, outcome: Outcome) -> None:
        if outcome.kind != "client_gone":
            for index in self._texts:
                self._finish(index, ends=True)
        self._sink.end(outcome)

    def _bound(self) -> None:
        """Finish the oldest choices where there are more than a request may ask for."""
        while len(self._texts) > MAX_CHOICES:
            index = next(iter(self._texts))
            self._finish(index, ends=True)
            del self._texts[index]

    def _text(self, index: int, surface: str) -> _Text | None:
        """The text that a choice says there; it begins if it has not. None: it passes."""
        text = self._texts.get(index, _NONE).get(surface)
        if text is None and (rewrite := self._begin(surface.removeprefix("message."))) is not None:
            text = self._texts.setdefault(index, {})[surface] = _Text(rewrite)
        return text

    def _say(self, chunk: Chunk, index: int, text: str) -> None:
        """Pass on a chunk that says more of a content and nothing else."""
        says = self._text(index, "content")
        if says is None:
            self._sink.feed(chunk)
            return
        before = says.held
        leaves = says.add(chunk, text, False)
        held = says.held
        if not before and not held and leaves == text:
            self._sink.feed(chunk)
        elif (says.frames or not before) and leaves + held == before + text:
            says.frames.append((chunk, text))
            says.free += leaves
            self._release(says)
        else:
            self._replace(says, chunk, index, text, leaves)

    def _release(self, says: _Text) -> None:
        """Pass on the frames of which all may leave, as they came, and what may of a long one."""
        frames = says.frames
        while frames and len(frames[0][1]) <= len(says.free):
            chunk, text = frames.pop(0)
            says.free = says.free[len(text) :]
            self._sink.feed(chunk)
        if len(frames) == 1 and len(says.free) > MAX_WAITING_CHARS:
            self._detach(says, says.free)

    def _replace(self, says: _Text, chunk: Chunk, index: int, text: str, leaves: str) -> None:
        """The same where what leaves is another text than came, or no frame waits with what was held."""
        own = text[: len(text) - len(says.held)] if says.held and len(says.held) <= len(text) else None
        if own is not None and len(own) <= MAX_WAITING_CHARS and leaves.endswith(own):
            # What the frame says itself is unchanged: with that it waits.
            head = leaves[: len(leaves) - len(own)]
            if says.frames:
                self._detach(says, says.free + head)
            elif head:
                self._tell(chunk, index, "content", head)
            says.frames, says.free = [(chunk, text)], own
        else:
            says.frames.append((chunk, text))
            self._detach(says, says.free + leaves)

    def _detach(self, says: _Text, text: str) -> None:
        """Pass on the frames that wait, with `text` in the place of theirs: the first one says it."""
        frames, says.frames, says.free = says.frames, [], ""
        for chunk, said in frames:
            if said == text:
                self._sink.feed(chunk)
            else:
                frame = _own(chunk)
                choice = frame["choices"][0]
                for slot in slots(choice, "delta"):
                    if slot.text:
                        slot.container[slot.key] = text
                choice.pop("logprobs", None)
                if text or _says(choice):
                    self._sink.feed(_written(chunk, frame))
            text = ""

    def _change(self, chunk: Chunk, frame: Frame) -> None:
        """Pass on a chunk of which some text may have to be another."""
        choices = frame.get("choices")
        changed: dict[int, list[str]] = {}  # by the place of a choice: what leaves of each of its texts
        for place, choice in enumerate(choices if type(choices) is list else ()):
            if type(choice) is dict:
                came = [*slots(choice, "message"), *slots(choice, "delta")]
                leaves = self._choice(chunk, choice, number_of(choice, place))
                if leaves != [slot.text for slot in came]:
                    changed[place] = leaves
        if not changed:
            self._sink.feed(chunk)
            return
        own = _own(chunk)
        says = _is_body(chunk) or own.get("usage") is not None or len(changed) < len(own["choices"])
        for place, leaves in changed.items():
            choice = own["choices"][place]
            for slot, text in zip([*slots(choice, "message"), *slots(choice, "delta")], leaves, strict=True):
                slot.container[slot.key] = text
            choice.pop("logprobs", None)  # they would say the text again
            says = says or _says(choice)
        if says:
            self._sink.feed(_written(chunk, own))

    def _choice(self, chunk: Chunk, choice: Frame, index: int) -> list[str]:
        """What leaves of each text of one choice of a frame. What was held of others leaves before, if it goes on to these."""
        texts = self._texts.get(index, _NONE)
        if len(texts) > MAX_TEXTS:
            self._finish(index, [*texts][-MAX_TEXTS:], ends=True)
        message, said = [*slots(choice, "message")], [*slots(choice, "delta")]
        if _is_body(chunk):
            return self._whole(chunk, message) + self._whole(chunk, said)
        ends = is_finished(choice)
        # An empty string is how servers say that there is none; an empty piece of a call or of a part is more of it, unless
        # the choice ends with it.
        delta = choice.get("delta")
        now = {
            slot.surface
            for slot in said
            if slot.text or not (ends or slot.container is delta or slot.container is choice)
        }
        if ends or now or _has_more(delta):
            self._finish(index, now.union(f"message.{slot.surface}" for slot in message if slot.text), ends=ends)
        leaves = self._message(chunk, message, index, ends)
        lasts = {slot.surface: place for place, slot in enumerate(said) if slot.text}
        for place, slot in enumerate(said):
            if not slot.text:
                leaves.append("")
                continue
            last = ends and place == lasts[slot.surface]
            begun = self._text(index, slot.surface)
            if begun is not None and begun.frames:
                self._detach(begun, begun.free)
            leaves.append(slot.text if begun is None else begun.add(chunk, slot.text, last))
        if ends:
            self._texts.pop(index, None)
        return leaves

    def _whole(self, chunk: Chunk, said: list[Slot]) -> list[str]:
        """What leaves of each text where these are all that there is of them."""
        lasts = {slot.surface: place for place, slot in enumerate(said)}
        texts: dict[str, _Text | None] = {}
        leaves = []
        for place, slot in enumerate(said):
            if slot.surface not in texts:
                rewrite = self._begin(slot.surface)
                texts[slot.surface] = None if rewrite is None else _Text(rewrite)
            text = texts[slot.surface]
            leaves.append(slot.text if text is None else text.add(chunk, slot.text, place == lasts[slot.surface]))
        return leaves

    def _message(self, chunk: Chunk, said: list[Slot], index: int, ends: bool) -> list[str]:
        """What leaves of a message in a frame of a stream.

        Some servers say all of it again in each frame: then it is looked through anew, and its end is not shown before it
        may be. Where a frame does not begin with what the one before said, each is taken for more of it, as a delta is.
        """
        wholes: dict[str, str] = {}
        lasts: dict[str, int] = {}
        for place, slot in enumerate(said):
            if slot.text:
                wholes[slot.surface] = wholes.get(slot.surface, "") + slot.text
                lasts[slot.surface] = place
        texts = {surface: self._text(index, f"message.{surface}") for surface in wholes}
        for surface, text in texts.items():
            if text is None:
                continue
            whole = wholes[surface]
            if text.length >= 0 and hash(whole[: text.length]) == text.hash:
                text.rewrite, text.held = self._begin(surface) or _never, ""
                text.length, text.hash = len(whole), hash(whole)
            else:
                text.length = -1
            text.shown = ""
        leaves = []
        for place, slot in enumerate(said):
            text = texts.get(slot.surface)
            if text is None or not slot.text:
                leaves.append(slot.text)
                continue
            leaves.append(text.add(chunk, slot.text, ends and place == lasts[slot.surface]))
            if text.length >= 0:
                text.shown += leaves[-1]
        return leaves

    def _finish(self, index: int, but: Container[str] = (), *, ends: bool) -> None:
        """Nothing more comes of the texts of a choice `but` of these: what was held of them leaves in chunks of its own.

        ends: nor of those that go on whatever else is said.
        """
        texts = self._texts.get(index, _NONE)
        for surface in [each for each in texts if each not in but and (ends or not each.startswith(_JOINED))]:
            text = texts.pop(surface)
            chunk = text.chunk
            if chunk is None:
                continue
            leaves = text.shown + text.free + text.rest()
            if leaves == "".join(said for _, said in text.frames):
                for waiting, _ in text.frames:
                    self._sink.feed(waiting)
            elif text.frames:
                self._detach(text, leaves)
            elif leaves:
                self._tell(chunk, index, surface, leaves)

    def _tell(self, chunk: Chunk, index: int, surface: str, text: str) -> None:
        """Pass on a text in a chunk of its own, that is otherwise like this one."""
        said = {key: value for key, value in _own(chunk).items() if key not in _ENDINGS}
        told = {"index": index, **_told(surface, text), "finish_reason": None}
        self._sink.feed(_event({**said, "choices": [told]}, chunk.name))


_NONE: Final[dict[str, _Text]] = {}


def begun(text: str, word: str) -> str:
    """The longest end of `text` that is a beginning of `word`, but not the whole of it: what more may come of."""
    return next(
        (word[:length] for length in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:length])), ""
    )


def _never(text: str, last: bool) -> tuple[str, str]:
    return text, ""


def _has_more(delta: Any) -> bool:
    """Whether a delta says anything, known or not."""
    return type(delta) is dict and any(value and key not in MESSAGE_METADATA for key, value in delta.items())


def _says(choice: Frame) -> bool:
    """Whether anything is left of a choice whose texts have changed."""
    delta = choice.get("delta")
    return (
        is_finished(choice)
        or any(value is not None and key not in _ITS_TEXT and value != "" for key, value in choice.items())
        or type(delta) is not dict
        or any(value is not None and value != "" for value in delta.values())
    )


def _told(surface: str, text: str) -> Frame:
    """How more of a text is said in a choice."""
    root, _, name = surface.partition(".")
    said: object = text
    if surface == "text":
        return {"text": text}
    if root == "message":
        return {"delta": {}, "message": _told(name, text)["delta"]}
    if root == "tool_calls":
        number, _, name = name.partition(".")
        said = [{"index": int(number), ("function" if name == "arguments" else "custom"): {name: text}}]
    elif root in ("function_call", "audio"):
        said = {name: text}
    elif root == "reasoning_details":
        said = [{"type": f"reasoning.{name or 'text'}", (name or "text"): text}]
    elif name:
        said = [{"type": name, name: [{"type": "text", "text": text}]}]
    return {"delta": {root: said}}


def _own(chunk: Chunk) -> Frame:
    """What a chunk says, to be changed; its numbers keep all their digits."""
    data = chunk.data
    if _LONG.search(data) is None:
        try:
            frame: Frame = orjson.loads(data)
        except orjson.JSONDecodeError:
            pass
        else:
            return frame
    return load_exactly(data)


def _written(chunk: Chunk, frame: Frame) -> Chunk:
    """The same chunk with another payload: an event keeps its name, its id and whatever else stands around its data."""
    data = dump(frame)
    if _is_body(chunk):
        return Chunk.body(data)
    if chunk.plain:
        return Chunk(b"data: " + data + b"\n\n", data)
    lines = []
    payload = b"data: " + data + b"\n"
    for line in chunk.raw.splitlines(keepends=True):
        if line.startswith(b"data:") or line.rstrip(b"\r\n") == b"data":
            line, payload = payload, b""  # noqa: PLW2901
        lines.append(line)
    return Chunk(b"".join(lines), data, False, chunk.name)


def _event(frame: Frame, name: str) -> Chunk:
    """A new event of this name."""
    data = dump(frame)
    head = b"event: %b\n" % name.encode() if name else b""
    return Chunk(b"%bdata: %b\n\n" % (head, data), data, not name, name)


def _is_body(chunk: Chunk) -> bool:
    return chunk.raw == chunk.data
