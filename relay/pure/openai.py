"""The OpenAI chat API as bytes and views: chunks, requests, error bodies, closing frames.

Nothing here is validated further than it must be. A chunk is parsed at most once, and only when somebody asks; it is
forwarded as the bytes it came as. What it says is read by `relay.pure.surfaces`.

Shapes: https://platform.openai.com/docs/api-reference/chat/streaming and what real servers send instead.
"""

from __future__ import annotations

import json as stdlib_json
from typing import Any, Final

import orjson

from relay.pure.framing import framed, payload
from relay.pure.sse import Event

Frame = dict[str, Any]

DONE: Final = b"[DONE]"
DONE_EVENT: Final = b"data: [DONE]\n\n"

# orjson reads 1,024 levels and writes 254; Python's own reader and every walk here end at the recursion limit, wherever
# on the stack that is. JSON that people mean has some twenty.
MAX_DEPTH: Final = 200


# A thousand times the longest contexts of today: one number beyond it would ruin a sum for as long as it is kept.
MOST_TOKENS: Final = 2**30

_UNREAD: Final[Frame] = {}


class Chunk(Event):
    """One piece of a reply: an event of a stream, or the whole body of a reply that is not streamed.

    Immutable: who wants another text makes another chunk.

    said: the index of its one choice, and the text, if it is known without parsing that it says this and nothing else.
    speaks: whether it says anything, if somebody has looked (`relay.pure.surfaces.says`).
    reading: what that found (`relay.pure.surfaces.Reading`), to be shared and not changed.
    """

    __slots__ = ("_json", "lenient", "reading", "said", "speaks")

    def __init__(self, raw: bytes, data: bytes, plain: bool = True, name: str = "") -> None:
        self.raw = raw
        self.data = data
        self.plain = plain
        self.name = name
        self.said: tuple[int, str] | None = None
        self.speaks: bool | None = None
        self.reading: Any = None
        self.lenient = False
        self._json: Frame | None = _UNREAD

    @property
    def json(self) -> Frame | None:
        """The payload as an object; None if it cannot be read as one. Parsed once, shared: do not change it.

        What nests more than MAX_DEPTH levels cannot be read.

        `lenient` then tells whether only the standard library could read it: lone surrogates, which stay in the
        strings; NaN; bytes that are no UTF-8, read as U+FFFD.
        """
        if self._json is not _UNREAD:
            return self._json
        try:
            value = orjson.loads(self.data)
        except orjson.JSONDecodeError:
            value = _load_leniently(self.data)
            self.lenient = True
        self._json = value if type(value) is dict and not nests_deeply(self.data, value) else None
        return self._json

    @property
    def size(self) -> int:
        """How many bytes it takes to hold; of some chunks with the few that frame it."""
        return len(self.raw)

    @property
    def framed(self) -> bytes:
        """Its bytes as an HTTP chunk."""
        return framed(self.raw)

    @classmethod
    def event(cls, frame: Frame) -> Chunk:
        """A new event of a stream that says `frame`."""
        data = dump(frame)
        return cls(b"data: " + data + b"\n\n", data)

    @classmethod
    def body(cls, data: bytes) -> Chunk:
        """The whole body of a reply that is not streamed."""
        return cls(data, data)


class PlainChunk(Chunk):
    """An event of which is known what it says, and that it says nothing else: most are, so little is made of it.

    It is kept as the HTTP chunk that it came in, and leaves as that. Who makes one sets `framed`, its `size`, and `said`:
    an initialiser in Python would cost more than all else about it.
    """

    __slots__ = ("framed", "size")

    framed: bytes
    size: int
    plain = True
    name = ""
    lenient = False
    reading = None

    __init__ = object.__init__

    @classmethod
    def of(cls, framed: bytes, said: tuple[int, str]) -> PlainChunk:
        chunk: PlainChunk = cls()
        chunk.framed = framed
        chunk.size = len(framed)
        chunk.said = said
        return chunk

    # Read only, like all of a chunk, and seldom asked for.

    @property
    def json(self) -> Frame | None:
        if not hasattr(self, "_json"):
            self._json = _UNREAD
        return super().json

    @property
    def raw(self) -> bytes:  # type: ignore[override]
        return payload(self.framed)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        return self.raw[5:].strip()


def _load_leniently(data: bytes) -> Any:
    try:
        return stdlib_json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def readable(chunk: Chunk) -> Chunk:
    """The chunk, or one with U+FFFD for its bytes that are no UTF-8: clients break on them."""
    try:
        chunk.raw.decode()
    except UnicodeDecodeError:
        raw, data = (text.decode("utf-8", "replace").encode() for text in (chunk.raw, chunk.data))
        return Chunk(raw, data, chunk.plain, chunk.name)
    return chunk


def usage_of(frame: Frame) -> Frame | None:
    """What a frame, or a reply that is not streamed, tells of its tokens."""
    usage = frame.get("usage")
    return usage if type(usage) is dict else None


def told_tokens(usage: Frame | None) -> tuple[int | None, int | None]:
    """The tokens of the prompt and of the reply; None for one that is not told, or cannot be true."""
    prompt, reply = (usage or _UNREAD).get("prompt_tokens"), (usage or _UNREAD).get("completion_tokens")
    return (
        prompt if type(prompt) is int and 0 <= prompt <= MOST_TOKENS else None,
        reply if type(reply) is int and 0 <= reply <= MOST_TOKENS else None,
    )


def load_exactly(data: bytes) -> Frame:
    """The object in `data` for changing and writing again: integers keep all their digits, unlike with orjson.

    Raises ValueError if `data` holds no object.
    """
    value = stdlib_json.loads(data.decode("utf-8", "replace"))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - it is the text that is wrong
    return value


def dump(value: object) -> bytes:
    """Compact JSON. Integers beyond 64 bits and lone surrogates, which orjson refuses, are written too."""
    try:
        return orjson.dumps(value)
    except TypeError:
        try:
            return stdlib_json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            return stdlib_json.dumps(value, separators=(",", ":")).encode()


class RepeatedKeyError(ValueError):
    """A key stands twice in one JSON object. Readers differ in which of the two they take."""


def _pairs_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise RepeatedKeyError("a key is repeated in one object")
    return unique


def has_repeated_key(data: bytes, value: object) -> bool:
    """Whether a key stands twice in one object of JSON text that was parsed to `value`, which nests no deeper than MAX_DEPTH.

    Most servers and clients write JSON as it is written here, and what comes to the same text again has lost nothing. Of
    other text the colons are counted, each of which follows a key or stands in a string: of keys that stand twice a parser
    keeps one, so what it kept has fewer of them; unless some of those in strings came as escapes, which then are more. Only
    where that leaves it open the text is read again.
    """
    try:
        again = orjson.dumps(value)
    except TypeError:  # what only the standard library reads
        return _repeats(data)
    return again != data and (count_of(data, b":") != count_of(again, b":") or b"\\u003" in data) and _repeats(data)


def _repeats(data: bytes) -> bool:
    """The same, by reading the text again: the slow way."""
    try:
        stdlib_json.loads(data.decode("utf-8", "replace"), object_pairs_hook=_pairs_without_repeats)
    except RepeatedKeyError:
        return True
    return False


def count_of(data: bytes, mark: bytes) -> int:
    """How often one byte stands in a text. `bytes.count` looks at every byte; `replace` finds it by memchr, faster by far."""
    return len(data) - len(data.replace(mark, b""))


def nests_deeply(data: bytes, value: object) -> bool:
    """Whether containers stand in one another more than MAX_DEPTH levels deep; `value` is what `data` was parsed to."""
    if len(data) <= 2 * MAX_DEPTH or count_of(data, b"{") + count_of(data, b"[") <= MAX_DEPTH:
        return False
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        level = [
            below
            for container in level
            for below in (container.values() if type(container) is dict else container)
            if type(below) is dict or type(below) is list
        ]
        if not level:
            return False
    return True


def error_body(message: str, *, type: str, code: str | None, param: str | None = None) -> bytes:
    """The body of an error as both official SDKs read it."""
    return dump({"error": {"message": message, "type": type, "param": param, "code": code}})


def error_event(body: bytes) -> bytes:
    """The same error inside a stream whose head has left."""
    return b"data: " + body + b"\n\n"


# What the frames of one stream share; a frame that we add has to carry the same.
_ENVELOPE: Final = ("id", "object", "created", "model", "system_fingerprint", "service_tier")


def envelope(frame: Frame) -> Frame:
    """The fields that every frame of a stream shares, taken from one of its frames."""
    return {name: frame[name] for name in _ENVELOPE if name in frame}


def delta_frame(shared: Frame, index: int, delta: Frame, finish_reason: str | None = None) -> Frame:
    """A frame of our own for one choice."""
    return {**shared, "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def usage_frame(shared: Frame, usage: Frame) -> Frame:
    """The frame that closes a stream for a client that asked for `include_usage`."""
    return {**shared, "choices": [], "usage": usage}
