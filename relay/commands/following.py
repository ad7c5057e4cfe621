"""The relay's events, followed over its restarts: aiohttp-sse-client's EventSource, and what it leaves to its user.

What to know of it (0.2.1), and what is done about it here:

* Of a stream that has ended in good order it makes a new one by itself, with the id of the last event: that is left to it.
  It tries once, and what breaks in any other way it raises as aiohttp does. Then a new one is made, with that id: it has
  kept half an event of the broken stream, which it would put before the next one.
* The id of the last event is told with events only, and not when one came without an event: `_last_event_id` is read.
* What was answered instead of a stream is told as a number in a message, after a line to Python's log, which ends on standard
  error. `raise_for_status`, which it hands to aiohttp, looks at the answer before.
* It doubles its pause before the first use. aiohttp's limit of five minutes for a request is lifted; a stream that is silent
  for longer than its comments allow is given up.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NamedTuple

import orjson
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, hdrs
from aiohttp_sse_client.client import EventSource
from multidict import CIMultiDict

# Between two comments there are twelve.
SILENT_S: Final = 40.0
CONNECT_S: Final = 5.0
FIRST_PAUSE_S: Final = 0.25
MAX_PAUSE_S: Final = 5.0
# Of an error's body.
_MAX_BYTES: Final = 65_536
_HEADER: Final = "Last-Event-ID"

logging.getLogger("aiohttp_sse_client").setLevel(logging.CRITICAL)


class Refused(Exception):
    """The relay answers, and will not let us follow: the message says why. It makes no sense to ask again."""


class _NotNow(Exception):
    """It answers, and cannot serve us now."""


class Heard(NamedTuple):
    """data: an object of JSON."""

    id: str
    kind: str
    data: dict[str, Any]


async def follow(
    url: str, token: str, query: Mapping[str, str], *, on_away: Callable[[str], None], on_back: Callable[[], None]
) -> AsyncIterator[Heard]:
    """What happens, for ever. Raises Refused.

    url: where the admin listener is, without a path. on_away: called with the reason when there is no stream any more, or
    none yet; on_back: when there is one again.
    """
    connection = _Connection(url, token, query, on_away, on_back)
    timeout = ClientTimeout(total=None, connect=CONNECT_S, sock_read=SILENT_S)
    async with ClientSession(timeout=timeout, trust_env=False) as session:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async for heard in connection.events(session):
                    pause_s = FIRST_PAUSE_S
                    yield heard
            except _NotNow as reason:
                connection.away(str(reason))
            except (ClientError, TimeoutError, OSError, ValueError) as error:
                connection.away(_in_words(error))
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_PAUSE_S, 2 * pause_s)


class _Connection:
    """One stream after the other."""

    def __init__(
        self,
        url: str,
        token: str,
        query: Mapping[str, str],
        on_away: Callable[[str], None],
        on_back: Callable[[], None],
    ) -> None:
        self._url = url.rstrip("/") + "/admin/events"
        self._token = token
        self._query = dict(query)
        self._on_away = on_away
        self._on_back = on_back
        self._open = False
        self._away = False
        self._last = ""

    async def events(self, session: ClientSession) -> AsyncIterator[Heard]:
        """The events of a stream, and of the next ones while each ends in good order. Raises what breaks it."""
        # One of which it replaces the id, however that is spelt.
        headers = CIMultiDict({hdrs.AUTHORIZATION: f"Bearer {self._token}"})
        if self._last:
            headers[_HEADER] = self._last
        source = EventSource(
            self._url,
            session=session,
            reconnection_time=timedelta(seconds=FIRST_PAUSE_S),
            max_connect_retry=0,
            on_open=self._back,
            on_error=self._ended,
            headers=headers,
            params=self._query,
            allow_redirects=False,
            raise_for_status=_look_at,
        )
        try:
            async with source:
                async for event in source:
                    heard = _heard(event.last_event_id, event.type, event.data)
                    if heard is not None:
                        yield heard
        finally:
            self._last = source._last_event_id or self._last

    def away(self, reason: str) -> None:
        self._open = False
        if not self._away:
            self._away = True
            self._on_away(reason)

    def _ended(self) -> None:
        if self._open:  # else it could not be made, and what is raised says why
            self.away("it has ended the stream")

    def _back(self) -> None:
        self._open = True
        if self._away:
            self._away = False
            self._on_back()


def _heard(last: str, kind: str | None, data: str) -> Heard | None:
    with suppress(orjson.JSONDecodeError):
        said = orjson.loads(data)
        if isinstance(said, dict):
            return Heard(last, kind or "message", said)
    return None  # of another version of the relay


async def _look_at(response: ClientResponse) -> None:
    """Raises for what is no event stream."""
    status = response.status
    if status == 200 and response.content_type == "text/event-stream":
        return
    if status == 401:
        raise Refused(
            "The relay does not take this token: it has to be that of its own [admin], as the relay was started."
        )
    said = ""
    with suppress(ClientError, TimeoutError, ValueError, KeyError, TypeError):
        said = str(orjson.loads(await response.content.read(_MAX_BYTES))["error"]["message"])
    if status >= 500:
        raise _NotNow(said or f"it answers with status {status}")
    if not said or status in (200, 404):
        said = f"What answers there has no /admin/events (status {status}): it is no relay's admin listener, or an older relay's."
    raise Refused(said)


def _in_words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it is silent"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return "the connection broke"
