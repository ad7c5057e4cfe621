"""What all answers have in common: they are read strictly, and what is kept of them is bounded. Pure.

No error here quotes an answer: an endpoint may repeat the text that it was asked about.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec
import orjson

from relay.moderator import NoVerdict
from relay.reading import has_repeated_key, nests_deeply

T = TypeVar("T")

MAX_NAME_CHARS: Final = 64
# The sentences of msgspec that name types and fields of ours alone.
_HARMLESS: Final = re.compile(r"Expected |Object missing required field ")


def read(data: bytes, shape: type[T]) -> T:
    """Raises NoVerdict that says what is wrong, and where."""
    try:
        answer = msgspec.json.decode(data, type=shape)
        value = orjson.loads(data)
    except msgspec.ValidationError as error:
        raise NoVerdict(f"the endpoint's answer is not as it has to be: {_said(str(error))}") from None
    except (msgspec.DecodeError, ValueError):
        raise NoVerdict("the endpoint's answer is no JSON; check `url`, and what is in front of it") from None
    # Readers differ in which of two they take: the endpoint may have meant the other one.
    if nests_deeply(data, value) or has_repeated_key(data, value):
        raise NoVerdict(
            "the endpoint's answer is not as it has to be: a key stands twice in one object, or it nests deeply"
        )
    return answer


def name(said: str) -> str:
    """A label or a reference as it may stand in the log."""
    return "".join(char if char.isprintable() else "_" for char in said[:MAX_NAME_CHARS])


def _said(message: str) -> str:
    what, _, where = message.rpartition(" - at ")
    what, where = (what, f", at {where}") if what else (message, "")
    if what.startswith("Invalid enum value"):
        return f"a value that is none of those that there are{where}"
    if what.startswith("Object contains unknown field"):
        return f"a field that there is not{where}"
    return f"{what}{where}" if _HARMLESS.match(what) else f"a value that cannot be read{where}"
