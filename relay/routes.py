"""The paths of the public listener: what the core serves itself. Dialects (`Plugin.routes`) add theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from relay.exchange import Operation


@dataclass(frozen=True, slots=True)
class Route:
    """What a path is for. `method` is the one that it takes, beside OPTIONS and, for GET, HEAD."""

    method: str
    operation: Operation


CHAT: Final = Route("POST", "chat")

ROUTES: Final[Mapping[str, Route]] = {
    "/v1/chat/completions": CHAT,
    "/v1/models": Route("GET", "models"),
    "/v1/quota": Route("GET", "quota"),
}
