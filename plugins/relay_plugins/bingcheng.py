"""`bingcheng`: the second public API that this project serves, at a path of its own.

Its requests are chat completions, or carry the conversation as one string in `keyword`, which its page also calls `Q`
(`relay.pure.turns` says how that is read). `messages` wins over `keyword`, `keyword` over `Q`; null is as good as absent.
All else in the body goes on as it came. Its replies, streamed and not, are a chat completion's.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, ClassVar, Final

from msgspec import Meta

from relay.errors import Reject
from relay.plugin import Plugin
from relay.pure.request import JsonObject
from relay.pure.turns import TooManyTurns, turns

HISTORIES: Final = ("keyword", "Q")

# The string is read in one go, so it must not be so long that other streams would feel it. It is still longer than what
# models with 128,000 tokens read, of which a character is at least a quarter.
MAX_CHARS: Final = 500_000
# More messages than that are refused in a chat completion too.
MAX_TURNS: Final = 10_000

_ABSENT: Final = object()


class Bingcheng(Plugin):
    """Makes chat completions of the requests to `/api/v2.Gptliu/search`.

    default_model: for a request that names none, as those with a `keyword` do on the page.
    """

    default_model: Annotated[str, Meta(min_length=1)] = "gpt-3.5-turbo"

    routes: ClassVar[tuple[str, ...]] = ("/api/v2.Gptliu/search",)

    def translate(self, path: str, body: JsonObject) -> JsonObject:
        if body.get("model") is None:
            body.set("model", self.default_model)
        if body.get("messages") is None:
            given = [name for name in HISTORIES if body.get(name) is not None]
            if given:
                body.set("messages", _messages(given[0], body.get(given[0])))
        for name in HISTORIES:
            if body.get(name, _ABSENT) is not _ABSENT:
                body.remove(name)
        return body


def _messages(name: str, history: Any) -> list[dict[str, str]]:
    """The messages of a history. Raises Reject."""
    if not isinstance(history, str):
        raise Reject(
            f"`{name}` has to be a string; send a list of messages as `messages`.", code="invalid_keyword", param=name
        )
    if len(history) <= MAX_CHARS:
        with suppress(TooManyTurns):
            return turns(history, MAX_TURNS)
    raise Reject(
        f"`{name}` may hold {MAX_CHARS:,} characters and {MAX_TURNS:,} turns; leave out the oldest turns.",
        code="keyword_too_long",
        param=name,
    )
