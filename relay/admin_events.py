"""`GET /admin/events`: what happens in the relay, as an event stream (`relay.events`), for as long as the client listens.

    ?kind=cut,refusal     these kinds only
    ?model=…  &upstream=…  &caller=…  &moderator=…     only events in which that stands
    ?last=20              first the last ones of what has happened before; without it, what happens from now on

Each event has an id. Who comes back with the last one in `Last-Event-ID` gets what happened meanwhile, as far as it is kept,
and is told (`missed`) what is not.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Final, cast

from aiohttp import hdrs, web

from relay.admin_api import query_of
from relay.errors import Reject, Unavailable
from relay.events import FILTERS, KEPT, KINDS, MAX_LISTENERS, MODEL_CHARS, Events, Filter, Kind, Listener

PATH: Final = "/admin/events"
QUERY: Final = ("kind", *FILTERS, "last")
LAST_EVENT_ID: Final = "Last-Event-ID"

# A proxy in between gives up on what is silent for a minute, or for half of one.
KEEPALIVE_S: Final = 12.0
# News are collected for so long, so that a flood is written in few pieces.
PAUSE_S: Final = 0.05
# A client that takes nothing for so long is gone.
STALL_S: Final = 30.0
# Of one write.
_AT_ONCE: Final = 100

_HEADERS: Final = {
    hdrs.CONTENT_TYPE: "text/event-stream",
    hdrs.CACHE_CONTROL: "no-store",
    "X-Accel-Buffering": "no",  # nginx would keep events until there are 4 KiB of them
    "X-Content-Type-Options": "nosniff",
    hdrs.SERVER: "relay",
}


class AdminEvents:
    """Answers requests that may be asked."""

    def __init__(self, events: Events) -> None:
        self._events = events

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The whole stream. Raises Reject for what is wrong with the query, Unavailable if too many listen."""
        query = query_of(request, QUERY)
        wanted, last = _filter(query), _last(query)
        response = web.StreamResponse(headers=_HEADERS)
        if request.method == hdrs.METH_HEAD:
            await response.prepare(request)
            return response
        if self._events.full:
            raise Unavailable(
                f"{MAX_LISTENERS} clients listen already, which is as many as may; end one of them.",
                code="too_many_listeners",
                headers={hdrs.RETRY_AFTER: "10"},
            )
        after = request.headers.get(LAST_EVENT_ID) or None
        with self._events.listen(wanted, after=after, last=last) as listener:
            await response.prepare(request)
            await _tell(listener, response, request)
        return response


async def _tell(listener: Listener, response: web.StreamResponse, request: web.BaseRequest) -> None:
    """Write what comes, until nothing more will. Raises ConnectionError when the client is gone, or does not read."""
    loop = asyncio.get_running_loop()
    # At once: it says where to go on, and a proxy passes the head on with it.
    written, over = listener.news() or [_keepalive(listener)], listener.over
    while True:
        for start in range(0, len(written), _AT_ONCE):
            try:
                async with asyncio.timeout(STALL_S):
                    await response.write(b"".join(written[start : start + _AT_ONCE]))
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("the listener does not read") from None
        if over:
            return
        due = loop.time() + KEEPALIVE_S
        written = []
        while not (written or over):
            await asyncio.sleep(PAUSE_S)
            await listener.wait(due - loop.time())
            written, over = listener.news(), listener.over
            if not written and loop.time() >= due:
                written = [_keepalive(listener)]


def _keepalive(listener: Listener) -> bytes:
    """A comment; and an id without an event, so that who comes back is not told again what it did not want to hear."""
    return b": listening\nid: %s\n\n" % listener.position.encode()


def _filter(query: Mapping[str, str]) -> Filter:
    named = [name.strip() for name in query["kind"].split(",")] if "kind" in query else list(KINDS)
    for name in named:
        if name not in KINDS:
            message = f"Unknown kind {name[:64]!r}. The kinds are {', '.join(KINDS)}; several as in kind=cut,refusal."
            raise Reject(message, code="invalid_kind", param="kind")
    fields = {name: query[name] for name in FILTERS if name in query}
    if "model" in fields:
        fields["model"] = fields["model"][:MODEL_CHARS]
    return Filter(frozenset(cast("list[Kind]", named)), fields)


def _last(query: Mapping[str, str]) -> int:
    text = query.get("last", "0")
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII):
        raise Reject(f"last is a number; of each kind {KEPT} are kept.", code="invalid_last", param="last")
    return int(text)
