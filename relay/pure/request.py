"""A chat request: read once, changed exactly.

The body is kept as the raw JSON of each of its fields, so an unknown field goes on as it came, 60-digit integers
included, and a body that nobody changed goes on byte for byte. Bodies that readers could understand differently (a key
twice in one object) are refused: what is moderated must be what the upstream reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import orjson

from relay.pure.openai import count_keys, has_repeated_key

# orjson holds the GIL while it builds a container for each bracket: 2 MiB of `[],` would stop every stream for 0.2 s.
MAX_BRACKETS: Final = 20_000
MAX_CHOICES: Final = 128

_RAW_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class InvalidRequest(ValueError):
    """A body that is no chat request. `code` and `param` are for the error body; the message says what to do."""

    def __init__(self, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


class ChatRequest:
    """A view on the body of a chat request.

    Raises InvalidRequest if the body is no JSON object, repeats a key, or has no messages.
    """

    __slots__ = ("_body", "_fields", "_parsed")

    def __init__(self, body: bytes) -> None:
        if body.count(b"{") + body.count(b"[") > MAX_BRACKETS:
            raise InvalidRequest(f"The body nests or lists more than {MAX_BRACKETS:,} values.", "invalid_json")
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"The body is not valid JSON: {error}.", "invalid_json") from None
        if not isinstance(parsed, dict):
            raise InvalidRequest("The body has to be a JSON object.", "invalid_json")
        try:
            repeated = has_repeated_key(body, count_keys(parsed))
            self._fields = _RAW_FIELDS.decode(body)
        except (RecursionError, msgspec.DecodeError):
            raise InvalidRequest("The body is nested too deeply.", "invalid_json") from None
        if repeated:
            raise InvalidRequest("A key is repeated in one JSON object; send each key once.", "repeated_key")
        self._body: bytes | None = body
        self._parsed: dict[str, Any] = parsed
        messages = parsed.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise InvalidRequest("Unsupported messages.", "invalid_messages")
        if not isinstance(parsed.get("stream", False), bool | None):
            raise InvalidRequest("`stream` has to be true or false.", "invalid_stream", "stream")
        n = parsed.get("n", 1)
        if n is not None and (type(n) is not int or not 1 <= n <= MAX_CHOICES):
            raise InvalidRequest(f"`n` has to be a whole number from 1 to {MAX_CHOICES}.", "invalid_n", "n")

    @property
    def model(self) -> str:
        """The model's public name; "" if the body has none."""
        model = self._parsed.get("model")
        return model if isinstance(model, str) else ""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation. Change it with `set`, never in place."""
        messages: list[dict[str, Any]] = self._parsed["messages"]
        return messages

    @property
    def stream(self) -> bool:
        return self._parsed.get("stream") is True

    @property
    def choices(self) -> int:
        """How many choices are asked for."""
        return self._parsed.get("n") or 1

    @property
    def wants_usage(self) -> bool:
        options = self._parsed.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    def get(self, name: str, default: Any = None) -> Any:
        """A field as it was parsed. Integers beyond 64 bits have become floats here; they go on exactly."""
        return self._parsed.get(name, default)

    def set(self, name: str, value: object) -> None:
        """Replace or add one field; the others go on as they came."""
        self._parsed = {**self._parsed, name: value}
        self._fields[name] = msgspec.Raw(orjson.dumps(value))
        self._body = None

    def remove(self, name: str) -> None:
        self._parsed = {key: value for key, value in self._parsed.items() if key != name}
        self._fields.pop(name, None)
        self._body = None

    def encode(self, *, model: str | None = None) -> bytes:
        """The body to send on; `model` is the upstream's name for it."""
        if model is not None and model != self.model:
            return msgspec.json.encode({**self._fields, "model": msgspec.Raw(orjson.dumps(model))})
        if self._body is None:
            self._body = msgspec.json.encode(self._fields)
        return self._body

    def texts(self) -> Iterator[tuple[str, str]]:
        """Everything in it that a model reads, with its place: each message whole, then tools and formats."""
        for position, message in enumerate(self.messages):
            yield f"messages[{position}]", "\n".join(_strings(message, skip=_MESSAGE_METADATA))
        for name in ("tools", "functions", "prediction", "response_format"):
            if name in self._parsed:
                yield name, "\n".join(_strings(self._parsed[name], skip=_TOOL_METADATA))


_MESSAGE_METADATA: Final = frozenset("role type tool_call_id id detail format".split())
_TOOL_METADATA: Final = frozenset("type".split())


def _strings(value: Any, skip: frozenset[str]) -> Iterator[str]:
    """The strings below a value. Texts of neighbouring parts are joined as models join them: with nothing between."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        joined = "".join(part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str))
        if joined:
            yield joined
        for part in value:
            if not (isinstance(part, dict) and set(part) <= {"type", "text"}):
                yield from _strings(part, skip)
    elif isinstance(value, dict):
        for key, below in value.items():
            if key not in skip or not isinstance(below, str):
                yield from _strings(below, skip)
