"""A chat request: read once, changed exactly.

The body is kept as the raw JSON of each of its fields, so an unknown field goes on as it came, 60-digit integers
included, and a body that nobody changed goes on byte for byte. Bodies that readers could understand differently (a key
twice in one object) are refused: what is moderated must be what the upstream reads.

What a model may read of it is moderated: all the messages, and every field that is not known to be a mere parameter. So
a field of a new server is moderated before anybody has heard of it, and `Messages`, which servers written in Go take for
`messages`, hides nothing.
"""

from __future__ import annotations

import json as stdlib_json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import msgspec
import orjson

from relay.pure.escapes import SurrogatePairer, Unescaper
from relay.pure.fold import NOTHING
from relay.pure.openai import MAX_DEPTH, count_of, dump, has_repeated_key, nests_deeply
from relay.pure.surfaces import is_opaque

# A parser holds the GIL while it builds what it reads, and every stream waits: 0.2 s for 2 MiB of `[],`, 0.1 s for 2 MiB
# of `1,` or `"k":1,`. With so much it is 10 ms. Ten thousand containers are 128 tools with a schema of 80 objects each.
MAX_BRACKETS: Final = 10_000
MAX_MARKS: Final = 40_000  # brackets, commas and colons: a value or a key has about one each
MAX_CHOICES: Final = 128
MAX_MODELS: Final = 32  # that are to be tried in place of the first

_RAW_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])


class InvalidRequest(ValueError):
    """A body that cannot be used. `code` and `param` are for the error body; the message says what to do."""

    def __init__(self, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


_OBJECTS: Final = {dict}


class Fields(dict[str, object]):
    """Fields to be set in many requests: their JSON is made once. Raises TypeError for what orjson cannot write."""

    __slots__ = ("written",)

    def __init__(self, fields: Mapping[str, object]) -> None:
        super().__init__(fields)
        self.written = orjson.dumps({**fields})


class JsonObject:
    """A JSON object that can be edited without touching what is not edited.

    Raises InvalidRequest if the body is no JSON object, repeats a key, or nests deeply.
    """

    __slots__ = ("_body", "_fields", "_parsed")

    def __init__(self, body: bytes) -> None:
        if len(body) > MAX_BRACKETS and _holds_too_much(body):  # a mark is a byte: most bodies are too short
            raise InvalidRequest(
                f"The body holds more than {MAX_BRACKETS:,} lists and objects, or more than {MAX_MARKS:,} brackets, commas "
                "and colons outside its strings; send less of them.",
                "invalid_json",
            )
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"The body is not valid JSON: {error}.", "invalid_json") from None
        if type(parsed) is not dict:
            raise InvalidRequest("The body has to be a JSON object.", "invalid_json")
        if nests_deeply(body, parsed):
            raise InvalidRequest(f"The body nests more than {MAX_DEPTH} levels deep.", "invalid_json")
        if has_repeated_key(body, parsed):
            raise InvalidRequest("A key is repeated in one JSON object; send each key once.", "repeated_key")
        # The JSON of each field, once one is to be changed; from then on the body is made of them.
        self._fields: dict[str, msgspec.Raw] | None = None
        self._body: bytes | None = body
        self._parsed: dict[str, Any] = parsed
        self._check()

    def _check(self) -> None:
        """Raises InvalidRequest if a kind of object has to be more than that and is not."""

    def _look(self) -> None:
        """Its fields have changed."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """All fields as they were parsed."""
        return self._parsed

    def get(self, name: str, default: Any = None) -> Any:
        """A field as it was parsed. Integers beyond 64 bits have become floats here; they go on exactly."""
        return self._parsed.get(name, default)

    def set(self, name: str, value: object) -> None:
        """Replace or add one field; the others go on as they came."""
        self.update({name: value})

    def update(self, fields: Mapping[str, object]) -> None:
        """Replace or add several fields at once."""
        if not self._append(fields):
            self._edited().update((name, msgspec.Raw(dump(value))) for name, value in fields.items())
        self._parsed = {**self._parsed, **fields}
        self._look()

    def _append(self, fields: Mapping[str, object]) -> bool:
        """Write new fields behind the others, which need not be taken apart for that; whether it could be done."""
        body = self._body
        if self._fields is not None or body is None or not (self._parsed and fields):
            return False
        if not self._parsed.keys().isdisjoint(fields):
            return False
        try:
            added = fields.written if type(fields) is Fields else orjson.dumps({**fields})
        except TypeError:  # what `dump` writes all the same could not be taken apart any more
            return False
        self._body = b"".join((body[: body.rindex(b"}")], b",", added[1:]))
        return True

    def remove(self, name: str) -> None:
        self._parsed = {key: value for key, value in self._parsed.items() if key != name}
        self._edited().pop(name, None)
        self._look()

    def _raw(self) -> dict[str, msgspec.Raw]:
        """The JSON of each field."""
        if self._fields is None:
            assert self._body is not None
            self._fields = _RAW_FIELDS.decode(self._body)
        return self._fields

    def _edited(self) -> dict[str, msgspec.Raw]:
        """The same, to be changed."""
        fields, self._body = self._raw(), None
        return fields

    def encode(self) -> bytes:
        """The object as JSON: byte for byte what came, if nobody has changed it."""
        if self._body is None:
            self._body = msgspec.json.encode(self._raw())
        return self._body


class ChatRequest(JsonObject):
    """A view on the body of a chat request.

    Raises InvalidRequest if the body is no JSON object, repeats a key, has no messages, or a `stream` or `n` that is none.

    model: its public name; "" if the body has none. messages: the conversation. choices: how many are asked for.
    stream: whether the reply is to be streamed. contents: the text of each message, if they are nothing but texts with
    well-known roles, as most are, and say one thing however they are read; else None.
    All follow the fields: change those, by `set`, and nothing in place.
    """

    __slots__ = ("choices", "contents", "messages", "model", "stream")

    @classmethod
    def of(cls, body: JsonObject) -> ChatRequest:
        """The same object as a chat request, without reading it again; `body` is not to be used any more."""
        request = cls.__new__(cls)
        request._body, request._fields, request._parsed = body._body, body._fields, body._parsed
        request._check()
        return request

    def _check(self) -> None:
        given = self._parsed.get
        messages, stream, n = given("messages"), given("stream"), given("n")
        if type(messages) is not list or {*map(type, messages)} != _OBJECTS:  # an empty list is refused too
            raise InvalidRequest("Unsupported messages.", "invalid_messages")
        if stream is not None and type(stream) is not bool:
            raise InvalidRequest("`stream` has to be true or false.", "invalid_stream", "stream")
        if n is not None and (type(n) is not int or not 1 <= n <= MAX_CHOICES):
            raise InvalidRequest(f"`n` has to be a whole number from 1 to {MAX_CHOICES}.", "invalid_n", "n")
        self._check_models()
        self._read(messages)
        self._look()

    def _check_models(self) -> None:
        """Whoever reads it sees the same models: their names decide who may ask, and which plugins a request meets."""
        parsed = self._parsed
        for name in parsed.keys() - _PARAMETERS:
            if name != "models" and name.lower().replace("\u017f", "s") in ("model", "models"):
                raise InvalidRequest("Write `model` and `models` in small letters.", "invalid_model", "model")
        if "models" in parsed and parsed["models"] is not None:
            others = parsed["models"]
            if type(others) is not list or len(others) > MAX_MODELS or {*map(type, others)} - {str}:
                raise InvalidRequest(
                    f"`models` has to be a list of at most {MAX_MODELS} names.", "invalid_model", "models"
                )

    def _look(self) -> None:
        given = self._parsed.get
        model = given("model")
        self.model: str = model if type(model) is str else ""
        self.stream: bool = given("stream") is True
        self.choices: int = given("n") or 1
        if self._parsed["messages"] is not self.messages:
            self._read(self._parsed["messages"])

    def _read(self, messages: list[dict[str, Any]]) -> None:
        self.messages = messages
        self.contents: list[str] | None = None
        contents = []
        for message in messages:
            text = message.get("content")
            if len(message) != 2 or type(text) is not str or message.get("role") not in _ROLES:
                return
            if "\\" in text and _ESCAPE.search(text):
                return
            contents.append(text)
        self.contents = contents

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that it names: `model`, and in `models` those that some servers (OpenRouter) try in its place."""
        others = self._parsed.get("models")
        return (self.model, *(str(name) for name in others)) if isinstance(others, list) else (self.model,)

    @property
    def wants_usage(self) -> bool:
        options = self._parsed.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def speaks_beside_messages(self) -> bool:
        """Whether another field, such as `tools`, may say something to the model."""
        return not self._parsed.keys() <= _PARAMETERS

    def beside_messages(self) -> Iterator[tuple[str, Any]]:
        """The other fields that may say something to the model, by name, as they were parsed."""
        return ((name, value) for name, value in self._parsed.items() if name not in _PARAMETERS)

    def keep_messages(self, positions: Sequence[int]) -> None:
        """Drop all messages but these; each of them goes on byte for byte."""
        messages, raw, fields = self.messages, self._raw_messages(), self._edited()
        self._parsed = {**self._parsed, "messages": [messages[position] for position in positions]}
        self._look()
        fields["messages"] = msgspec.Raw(msgspec.json.encode([raw[position] for position in positions]))

    def sent_on(self, *, model: str | None = None, usage: bool = False) -> bytes:
        """The body for an upstream.

        model: its name for the model. usage: have it tell the usage at the end of a stream.
        """
        changes: dict[str, msgspec.Raw] = {}
        if model is not None and model != self.model:
            changes["model"] = msgspec.Raw(orjson.dumps(model))
        if usage:
            given = self._raw()["stream_options"] if isinstance(self.get("stream_options"), dict) else b"{}"
            options = {**_RAW_FIELDS.decode(given), "include_usage": msgspec.Raw(b"true")}
            changes["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
        return msgspec.json.encode({**self._raw(), **changes}) if changes else self.encode()

    def texts(self) -> Iterator[tuple[str, str]]:
        """Everything in it that a model may read, with its place: each message whole, then each field. Nothing empty."""
        contents = self.contents
        for position, message in enumerate(self.messages):
            text = contents[position] if contents is not None else "\n".join(_strings(message, ""))
            if text:
                yield _place(position), text
        for name, value in self.beside_messages():
            text = "\n".join(_strings(value, name))
            if text:
                yield name, text

    def change_texts(self, change: Callable[[str, str], str], also: Collection[str] = ()) -> bool:
        """Put `change(text, key)` in the place of each string that a model may read; whether any is another one now.

        key: the name under which it stands, or under which its list does (`content`, `text`, `arguments`, …). Those of all
        messages, and of the fields that are no mere parameters; of these only the fields in `also`. Names of keys, roles, ids
        and long values without any white space, such as images, stay. A message or field in which nothing is another goes on
        byte for byte, and an integer with all its digits.
        """
        told = {
            place: after
            for place, message in enumerate(self.messages)
            if (after := _changed(message, "", change)) is not None
        }
        names = (name for name in self._parsed if name in also or name not in _PARAMETERS)
        others = {name: after for name in names if (after := _changed(self._parsed[name], name, change)) is not None}
        if not told and not others:
            return False
        fields, parsed = self._edited(), {**self._parsed}
        for name, texts in others.items():
            parsed[name] = _retold(_load(fields[name]), name, iter(texts))
            fields[name] = msgspec.Raw(dump(parsed[name]))
        if told:
            raw = self._raw_messages()
            parsed["messages"] = messages = [*self.messages]
            for place, texts in told.items():
                messages[place] = _retold(_load(raw[place]), "", iter(texts))
                raw[place] = msgspec.Raw(dump(messages[place]))
            fields["messages"] = msgspec.Raw(msgspec.json.encode(raw))
        self._parsed = parsed
        self._look()
        return True

    def _raw_messages(self) -> list[msgspec.Raw]:
        """The JSON of each message."""
        try:
            return _RAW_ITEMS.decode(self._raw()["messages"])
        except msgspec.DecodeError:  # lone surrogates, which no client can have sent: a plugin has set these messages
            return [msgspec.Raw(dump(message)) for message in self.messages]


def _load(raw: msgspec.Raw) -> Any:
    """One value, its integers with all their digits."""
    return stdlib_json.loads(bytes(raw).decode("utf-8", "surrogatepass"))


_place: Final = lru_cache(1024)("messages[{}]".format)


def _holds_too_much(body: bytes) -> bool:
    """Whether JSON text of more than MAX_BRACKETS bytes says more values than may be parsed in one go.

    Prompts are full of marks too, so strings are left out. Then no text of MAX_MARKS marks has more than twice as many
    quotes, and with more it need not be taken apart.
    """
    if sum(count_of(body, mark) for mark in (b"{", b"[", b",", b":")) <= MAX_BRACKETS:
        return False
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 2 * MAX_MARKS:
        return True
    bare = b"".join(unescaped.split(b'"')[::2])
    brackets = bare.count(b"{") + bare.count(b"[")
    return brackets > MAX_BRACKETS or brackets + bare.count(b",") + bare.count(b":") > MAX_MARKS


# Fields that set something and say nothing to the model; `messages` is read by itself.
_PARAMETERS: Final = frozenset(
    "messages model stream stream_options n user metadata store temperature top_p top_k min_p max_tokens "
    "max_completion_tokens presence_penalty frequency_penalty logit_bias logprobs top_logprobs stop seed tool_choice "
    "function_call parallel_tool_calls modalities audio service_tier reasoning reasoning_effort thinking verbosity "
    "safety_identifier prompt_cache_key prompt_cache_retention provider route transforms models".split()
)

_ROLES: Final = ("user", "assistant", "system", "developer", "tool", "function")
# Under these keys stands a name out of a list, which is left out: as long as it looks like one.
_LISTED: Final = frozenset("role type id tool_call_id detail format".split())
_IDENTIFIER: Final = re.compile(r"[\w.:/$-]{1,64}", re.ASCII)
# Under these stands text, however it looks; under others a long value may be an image.
_PROSE: Final = frozenset(
    "content text name arguments description refusal reasoning reasoning_content reasoning_details thinking prompt "
    "suffix input instructions system".split()
)
# In these objects the client has chosen the keys, and the model reads them.
_NAMED: Final = frozenset("properties $defs definitions arguments".split())
_ESCAPE: Final = re.compile(r"\\u[0-9A-Fa-f]{4}")


def _strings(value: Any, key: str) -> Iterator[str]:
    """The strings below a value that stands at `key`."""
    if isinstance(value, str):
        listed = key in _LISTED and _IDENTIFIER.fullmatch(value)
        if key in _PROSE or not (listed or is_opaque(value)):
            yield from _readings(value, key)
    elif isinstance(value, list):
        if key in _PROSE:
            yield from _joined([text for part in value if (text := _text(part))])
        for part in value:
            if key not in _PROSE or not _text(part):
                yield from _strings(part, key)
            elif isinstance(part, dict):
                yield from _strings({name: below for name, below in part.items() if name != "text"}, key)
    elif isinstance(value, dict):
        for name, below in value.items():
            if key in _NAMED or not _IDENTIFIER.fullmatch(name):
                yield name
            yield from _strings(below, name)


def _changed(value: Any, key: str, change: Callable[[str, str], str]) -> list[str] | None:
    """The texts below a value that stands at `key`, changed, in their order; None: they are what they were."""
    texts = [*_changeable(value, key)]
    after = [change(text, name) for text, name in texts]
    return after if any(text != old for text, (old, _) in zip(after, texts, strict=True)) else None


def _is_changeable(value: str, key: str) -> bool:
    listed = key in _LISTED and _IDENTIFIER.fullmatch(value) is not None
    return value != "" and (key in _PROSE or not (listed or is_opaque(value)))


def _changeable(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """The texts below a value, each with the name that it stands under."""
    if type(value) is str:
        if _is_changeable(value, key):
            yield value, key
    elif type(value) is list:
        for part in value:
            yield from _changeable(part, key)
    elif type(value) is dict:
        for name, below in value.items():
            yield from _changeable(below, name)


def _retold(value: Any, key: str, texts: Iterator[str]) -> Any:
    """The value with these texts in the place of those that `_changeable` finds in it."""
    if type(value) is str:
        return next(texts) if _is_changeable(value, key) else value
    if type(value) is list:
        return [_retold(part, key, texts) for part in value]
    if type(value) is dict:
        return {name: _retold(below, name, texts) for name, below in value.items()}
    return value


def _text(part: Any) -> str:
    """The text of one part of a content."""
    text = part.get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""


def _joined(parts: list[str]) -> Iterator[str]:
    """Servers join the parts of a content with nothing or with a line end: a phrase may be cut, or a word end hidden."""
    yield from _readings("".join(parts), "text")
    if any(_glued(before, after) for before, after in pairwise(parts)):
        yield "\n".join(parts)


def _glued(before: str, after: str) -> bool:
    """Whether two words become one."""
    last = next((char for char in reversed(before) if char not in NOTHING), "a")
    first = next((char for char in after if char not in NOTHING), "a")
    return last.isalnum() and first.isalnum()


def _readings(text: str, key: str) -> Iterator[str]:
    """A text, and what its JSON escapes say if it has some: a model reads the one like the other."""
    if text:
        yield text
    if "\\" in text and (key == "arguments" or _ESCAPE.search(text)):
        unescaper, pairer = Unescaper(), SurrogatePairer()
        meant = pairer.feed(unescaper.feed(text) + unescaper.finish()) + pairer.finish()
        if meant != text:
            yield meant
