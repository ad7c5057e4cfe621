"""Where text stands in a frame: the surfaces of its choices.

A *surface* is a place of a choice that a client may show: `content`, `reasoning_content`, a tool call, and any string
that nobody has told us about. A frame is read against a table of what is known; every other string under `choices`, and
every unknown string at the frame's own level, is a surface too, named by its path. So a new field of a new server is
moderated before anybody has heard of it.

A text that stands in a frame twice (`message.content` beside `delta.content`) is read twice: whether two fields stay
equal is not known until the stream has ended.

The known fields were collected from recorded streams of some thirty servers; `tests/pure/test_surfaces.py` has them.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any, Final

from relay.pure.openai import Chunk, Frame


class Kind(IntEnum):
    """How a text is joined to what stands before it on its surface."""

    PLAIN = 0
    NAME = 1  # a tool's name: a line of its own before the arguments
    ESCAPED = 2  # JSON text inside a string: its escapes are decoded once more


_PLAIN: Final = Kind.PLAIN  # a look-up in an enumeration is a call

Text = tuple[str, Kind, str]  # surface, kind, the text itself


class ChoiceReading:
    """What one choice of one frame says."""

    __slots__ = ("finished", "index", "texts")

    def __init__(self, index: int, texts: list[Text], finished: bool) -> None:
        self.index = index
        self.texts = texts
        self.finished = finished


class Reading:
    """What one frame says.

    choices: one entry a choice, in the frame's order.
    loose: unknown strings outside the choices.
    unknown: (container, key) of every string that no table knows, so that it can be taken out; opaque: of those among
    them that are no text.
    """

    __slots__ = ("choices", "loose", "opaque", "unknown")

    def __init__(self) -> None:
        self.choices: list[ChoiceReading] = []
        self.loose: list[Text] = []
        self.unknown: list[tuple[Any, str | int]] = []
        self.opaque: list[tuple[Any, str | int]] = []

    def forget_unknown(self) -> None:
        """Drop the texts of unknown fields."""
        self.loose = []
        for part in self.choices:
            part.texts = [text for text in part.texts if not text[0].startswith("?")]


# Strings in these fields say nothing to a reader; what stands inside them is skipped.
FRAME_METADATA: Final = frozenset(
    "id object created model system_fingerprint service_tier usage provider obfuscation p timings x_groq seed "
    "prompt_filter_results prompt_annotations prompt_logprobs prompt_token_ids kv_transfer_params "
    "latency_checkpoint request_id nvext backend search_id".split()
)
CHOICE_METADATA: Final = frozenset(
    "index finish_reason native_finish_reason stop_reason matched_stop content_filter_results content_filter_offsets "
    "content_filter_result seed token_ids stop_sequence finish_details".split()
)
MESSAGE_METADATA: Final = frozenset("role token_id token_ids prefix".split())
PART_METADATA: Final = frozenset("type format index id signature_type".split())
TOOL_METADATA: Final = frozenset("index id type".split())
PLAIN_SURFACES: Final = frozenset("content reasoning_content reasoning refusal".split())
PART_SURFACES: Final = PLAIN_SURFACES | {"reasoning_details"}

# Where a whole message says something to its reader, in the order in which a stream would have said it.
PROSE: Final = ("reasoning_content", "reasoning", "content", "refusal")

# A value this long in nothing but visible ASCII is no text: audio, a signature, encrypted content. Any other character
# may be read as text: not every script has spaces, and a fullwidth letter is a letter.
OPAQUE_CHARS: Final = 256
_TEXT_LIKE: Final = re.compile("[^!-~]")

# Ollama, SGLang and KoboldCpp have sent these in every frame.
_UNFINISHED: Final = (None, "", "null")

# Beyond this, readers differ in what a number is: orjson has floats where the standard library has integers.
_EXACT: Final = 2**53


class IndexUnclearError(ValueError):
    """An index that readers take for different numbers: `true`, `"1"`, 1.5, or one that is not exact for all of them."""


def index_of(entry: Frame, position: int) -> int:
    """The number of a choice or a tool call that stands at `position` in its array.

    A client that is handed none counts for itself. Raises IndexUnclearError: what is said under an index that one client
    joins to one text and another to another cannot be read as either.
    """
    index = entry.get("index")
    if index is None:
        return position
    if type(index) is float and index.is_integer():  # 1.0 is 1 to clients in JavaScript
        index = int(index)
    if type(index) is not int or not -_EXACT <= index < _EXACT:
        raise IndexUnclearError("an index is no whole number")
    return index


def is_opaque(value: str) -> bool:
    """Whether a value is no text, where nobody knows what stands there."""
    return len(value) > OPAQUE_CHARS and _TEXT_LIKE.search(value) is None


def read(frame: Frame, *, whole: bool = False) -> Reading:
    """Read one frame of a stream, or with `whole` a reply that is not streamed (its message is then the delta).

    Raises IndexUnclearError.
    """
    reader = _Reader()
    for key, value in frame.items():
        if key in FRAME_METADATA:
            continue
        if key == "choices" and type(value) is list:
            for position, choice in enumerate(value):
                reader.choice(value, position, choice, whole)
        else:
            reader.walk(frame, key, value, _step(key), reader.loose)
    return reader


def says(chunk: Chunk) -> bool:
    """Whether there is any text in a frame of a stream, in a choice."""
    if chunk.said is not None:
        return True
    if chunk.speaks is None:
        chunk.speaks = False
        frame = chunk.json
        if frame is None:
            return False
        try:
            reading = read(frame)
        except IndexUnclearError:
            return False
        for part in reading.choices:
            if part.texts:
                chunk.speaks = True
        if not reading.unknown:  # those are for each reader to forget, or not
            chunk.reading = reading
    return chunk.speaks


def finished(frame: Frame) -> dict[int, Any]:
    """The choices that a frame ends, by their index, and why. Raises IndexUnclearError."""
    choices = frame.get("choices")
    finishes = {}
    if type(choices) is list:
        for position, choice in enumerate(choices):
            if type(choice) is dict and is_finished(choice):
                finishes[index_of(choice, position)] = choice["finish_reason"]
    return finishes


def is_finished(choice: Frame) -> bool:
    """Whether a frame ends this choice."""
    return choice.get("finish_reason") not in _UNFINISHED


def _step(name: str) -> str:
    """A name in a path: `{"a.b": …}` and `{"a": {"b": …}}` are two texts."""
    return name.replace(".", "\\.") if "." in name else name


class _Reader(Reading):
    """A reading, and how it is made."""

    __slots__ = ()

    def choice(self, choices: list[Any], position: int, choice: Any, whole: bool) -> None:
        if type(choice) is not dict:
            self.walk(choices, position, choice, "choices", self.loose)
            return
        texts: list[Text] = []
        for key, value in choice.items():
            kind = type(value)
            if key == "delta" and kind is dict:
                self.message(value, "", texts)
            elif key in CHOICE_METADATA:
                continue
            elif key == "message" and kind is dict:
                self.message(value, "" if whole else "message.", texts)
            elif key == "logprobs" and kind is dict:
                self.logprobs(value, texts)
            elif key == "text" and kind is str:
                if value:
                    texts.append(("text", _PLAIN, value))
            else:
                self.walk(choice, key, value, _step(key), texts)
        self.choices.append(ChoiceReading(index_of(choice, position), texts, is_finished(choice)))

    def message(self, message: Frame, prefix: str, texts: list[Text]) -> None:
        for key, value in message.items():
            kind = type(value)
            if kind is str:
                if not value or key in MESSAGE_METADATA:
                    continue
                if key in PLAIN_SURFACES:
                    texts.append((prefix + key, _PLAIN, value))
                else:
                    self.tell_unknown(message, key, value, prefix + _step(key), texts)
            elif kind is list:
                if key == "tool_calls":
                    for position, call in enumerate(value):
                        self.tool_call(value, position, call, prefix, texts)
                elif key in PART_SURFACES:
                    self.parts(value, prefix + key, texts)
                else:
                    self.walk(message, key, value, prefix + _step(key), texts)
            elif kind is dict:
                if key == "function_call":
                    self.function(value, prefix + key, texts)
                elif key == "audio":
                    self.audio(value, prefix + key, texts)
                else:
                    self.walk(message, key, value, prefix + _step(key), texts)

    def audio(self, audio: Frame, surface: str, texts: list[Text]) -> None:
        """Speech: its transcript is text, its data is opaque."""
        for key, value in audio.items():
            if key == "transcript" and type(value) is str:
                if value:
                    texts.append((surface, _PLAIN, value))
            elif key != "id" or type(value) is not str:
                self.walk(audio, key, value, f"{surface}.{_step(key)}", texts)

    def parts(self, parts: list[Any], surface: str, texts: list[Text]) -> None:
        """An array of parts: `{type: text, text}`, `{type: thinking, thinking: [...]}`, or plain strings."""
        for position, part in enumerate(parts):
            if type(part) is str:
                if part:
                    texts.append((surface, _PLAIN, part))
            elif type(part) is dict:
                for name, value in part.items():
                    if name in PART_METADATA and type(value) is not dict and type(value) is not list:
                        continue
                    if name == "text" and type(value) is str:
                        if value:
                            texts.append((surface, _PLAIN, value))
                            if part.get("index") is not None:
                                # Some clients join the parts of an array as they come, others those of one index.
                                texts.append((f"{surface}[{index_of(part, position)}]", _PLAIN, value))
                    elif name == "thinking" and type(value) is list:
                        self.parts(value, surface + ".thinking", texts)
                    else:
                        self.walk(part, name, value, f"{surface}.{_step(name)}", texts)
            else:
                self.walk(parts, position, part, surface, texts)

    def tool_call(self, calls: list[Any], position: int, call: Any, prefix: str, texts: list[Text]) -> None:
        if type(call) is not dict:
            self.walk(calls, position, call, prefix + "tool_calls", texts)
            return
        surface = f"{prefix}tool_calls.{index_of(call, position)}"
        for key, value in call.items():
            if key == "function" and type(value) is dict:
                self.function(value, surface, texts)
            elif key in TOOL_METADATA and type(value) is not dict and type(value) is not list:
                continue
            else:
                self.walk(call, key, value, f"{surface}.{_step(key)}", texts)

    def function(self, function: Frame, surface: str, texts: list[Text]) -> None:
        """A name and its arguments are one text, the name on a line of its own, whichever came first in the JSON."""
        name, arguments = function.get("name"), function.get("arguments")
        if type(name) is str and name:
            texts.append((surface, Kind.NAME, name))
        if type(arguments) is str and arguments:
            texts.append((surface, Kind.ESCAPED, arguments))
        for key, value in function.items():
            if key not in ("name", "arguments") or type(value) is not str:
                self.walk(function, key, value, f"{surface}.{_step(key)}", texts)

    def logprobs(self, logprobs: Frame, texts: list[Text]) -> None:
        """The tokens say the text again. (`top_logprobs` are guesses and are not guarded: the docs say so.)"""
        for key, value in logprobs.items():
            surface = f"logprobs.{key}"
            if key == "top_logprobs":
                continue
            if type(value) is list:
                joined = []
                for position, entry in enumerate(value):
                    if type(entry) is dict:
                        joined.append(self.token(entry, surface, texts))
                    elif type(entry) is str:
                        joined.append(entry)
                    else:
                        self.walk(value, position, entry, surface, texts)
                text = "".join(joined)
                if text:
                    texts.append((surface, _PLAIN, text))
            else:
                self.walk(logprobs, key, value, surface, texts)

    def token(self, entry: Frame, surface: str, texts: list[Text]) -> str:
        """The token of one entry; "" if it has none."""
        token = ""
        for key, value in entry.items():
            if key == "token" and type(value) is str:
                token = value
            elif key != "top_logprobs":
                self.walk(entry, key, value, f"{surface}.{_step(key)}", texts)
        return token

    def walk(self, container: Any, key: str | int, value: Any, path: str, texts: list[Text]) -> None:
        """Every string below a place that no table knows."""
        kind = type(value)
        if kind is str:
            if value:
                self.tell_unknown(container, key, value, path, texts)
        elif kind is dict:
            for name, below in value.items():
                if type(below) in _CONTAINERS:
                    self.walk(value, name, below, f"{path}.{_step(name)}", texts)
        elif kind is list:
            for position, below in enumerate(value):
                if type(below) in _CONTAINERS:
                    self.walk(value, position, below, path, texts)

    def tell_unknown(self, container: Any, key: str | int, value: str, path: str, texts: list[Text]) -> None:
        self.unknown.append((container, key))
        if is_opaque(value):
            self.opaque.append((container, key))
        else:
            texts.append(("?" + path, _PLAIN, value))


_CONTAINERS: Final = frozenset((str, dict, list))
