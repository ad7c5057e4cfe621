"""A streaming relay for chat completions that moderates what it streams.

What is listed here is public; `relay.plugin` is the page for plugin authors, `relay.moderator` the one for authors of
moderators, `relay.testing` has fakes for their tests. Everything else may change.
"""

from relay.errors import Reject, RelayError
from relay.exchange import CALLER, Exchange, Key, Outcome
from relay.moderator import Moderator, Verdict
from relay.options import Table
from relay.plugin import Plugin, Reply, Services, Sink
from relay.pure.openai import Chunk
from relay.pure.request import JsonObject
from relay.secret import Secret

__all__ = [
    "CALLER",
    "Chunk",
    "Exchange",
    "JsonObject",
    "Key",
    "Moderator",
    "Outcome",
    "Plugin",
    "Reject",
    "RelayError",
    "Reply",
    "Secret",
    "Services",
    "Sink",
    "Table",
    "Verdict",
]
