"""Which pages may read a reply: the headers of cross-origin requests (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import hdrs

EXPOSED: Final = (
    "x-request-id, retry-after, x-should-retry, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    "x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    "x-ratelimit-limit-characters, x-ratelimit-remaining-characters, x-ratelimit-reset-characters, "
    "x-relay-trimmed-messages, x-relay-degraded, cache-status, age"
)
"""What a page may read of a reply's head."""

# Names of headers, as browsers list them.
_NAMES: Final = re.compile(r"[a-zA-Z0-9-]{1,64}(, ?[a-zA-Z0-9-]{1,64}){0,40}")


def cors_headers(origin: str, headers: Mapping[str, str], origins: Sequence[str]) -> Mapping[str, str]:
    """The headers that let a page of an allowed origin read the reply to a request with `headers`; none for others."""
    everybody = tuple(origins) == ("*",)
    if not (everybody or origin in origins):
        return {}
    asked = headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
    return {
        hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*" if everybody else origin,
        # SDKs in browsers send a dozen of their own, and those that we do not know we do not read.
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: asked if _NAMES.fullmatch(asked) else "authorization, content-type",
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, OPTIONS",
        hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: EXPOSED,
        hdrs.VARY: hdrs.ORIGIN,
    }
