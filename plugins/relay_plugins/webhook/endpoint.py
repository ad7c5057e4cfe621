"""The endpoint at the other end of a connection: one POST out, the bytes of one answer or one `NoVerdict` in.

No time-outs and no retries: the relay cancels, and asks again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, Self

import aiohttp
from yarl import URL

from relay.moderator import NoVerdict, RateLimited, Unauthorized, Unavailable

MAX_ANSWER_BYTES: Final = 65_536
# uvicorn closes idle connections after 5 s; one that we give up first is never found closed.
_IDLE_S: Final = 4.0


class Endpoint:
    """One address, and at most so many connections to it."""

    def __init__(self, session: aiohttp.ClientSession, url: URL) -> None:
        self._session = session
        self._url = url

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: URL, connections: int) -> AsyncIterator[Self]:
        """An endpoint with connections of its own, closed after the block."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=_IDLE_S),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Nothing is gained by compressing a kilobyte, and what is not unpacked cannot grow.
            auto_decompress=False,
            headers={"User-Agent": "moderelay", "Accept-Encoding": "identity", "Content-Type": "application/json"},
        ) as session:
            yield cls(session, url)

    async def ask(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """Raises NoVerdict."""
        try:
            # A redirect would take the credentials, and the text, to where nobody has said that they may go.
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise refused(answer.status)
                return await _bounded(answer.content)
        except (aiohttp.ClientError, OSError) as error:
            # Not chained: some of them hold the request's headers.
            raise Unavailable(f"the connection failed ({type(error).__name__})") from None


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    data = b""
    async for part in content.iter_any():
        data += part
        if len(data) > MAX_ANSWER_BYTES:
            raise NoVerdict(f"the endpoint's answer is longer than {MAX_ANSWER_BYTES} bytes; check `url`")
    return data


def refused(status: int) -> NoVerdict:
    """What an HTTP status other than 200 means."""
    if status in (401, 403):
        return Unauthorized(f"HTTP {status}: the endpoint does not take the credentials; check `token` and `headers`")
    if status == 429:
        return RateLimited("HTTP 429: too many calls; lower `calls_per_second`")
    if status == 408 or status >= 500:
        return Unavailable(f"HTTP {status} from the endpoint, or from what is in front of it")
    if 300 <= status < 400:
        return NoVerdict(f"HTTP {status}: redirects are not followed; set `url` to where it leads")
    if status < 300:
        return NoVerdict(f"HTTP {status} where 200 and a verdict are expected; check `url`")
    return NoVerdict(f"HTTP {status}: the endpoint does not take what it is sent; check `url`, `api` and `model`")
