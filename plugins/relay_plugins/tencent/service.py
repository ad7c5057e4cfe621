"""The service at the other end of a connection: one call out, one answer or one `NoVerdict` in.

The SDK's own clients are not used: they cost more than twice the CPU of a call, block or open a connection for every
call, and retry wrongly. Here are its models, its signature and its errors over one aiohttp session that keeps its
connections. No time-outs and no retries: the relay cancels, and asks again.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

import aiohttp
import orjson
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.tms.v20201229 import models
from yarl import URL

from relay.moderator import Unauthorized, Unavailable
from relay.secret import Secret
from relay_plugins.tencent.faults import fault, refused_by_status
from relay_plugins.tencent.signature import headers

MAX_ANSWER_BYTES: Final = 1024 * 1024
# Above what a full rate has in flight while the service is slow: 800 calls/s, each given up after 2 s.
_MAX_CONNECTIONS: Final = 2000
_KEEP_ALIVE_S: Final = 30
_VISIBLE: Final = re.compile(r"[!-~]*").fullmatch
_CONNECTION_HEADERS: Final = {"User-Agent": "moderelay"}
_NOT_SENT: Final = ("Accept", "Accept-Encoding")  # nothing is gained by compressing a kilobyte


class Service:
    """One account at one endpoint.

    The secrets are revealed for each call: one that comes from a file may change.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: URL, region: str, secrets: tuple[Secret, Secret, Secret | None]
    ) -> None:
        self._session = session
        self._url = url
        self._host = url.host_port_subcomponent or ""
        self._region = region
        self._secrets = secrets

    @classmethod
    @asynccontextmanager
    async def connected(
        cls, url: URL, region: str, secret_id: Secret, secret_key: Secret, token: Secret | None
    ) -> AsyncIterator[Self]:
        """A service with a session of its own, closed after the block."""
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE_S, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_CONNECTION_HEADERS,
            skip_auto_headers=_NOT_SENT,
            trust_env=False,
        )
        async with session:
            yield cls(session, url, region, (secret_id, secret_key, token))

    async def ask(self, request: models.TextModerationRequest) -> models.TextModerationResponse:
        """Raises NoVerdict."""
        body = orjson.dumps(request._serialize())
        now = time.time()
        date = ""
        try:
            async with self._session.post(
                self._url, data=body, headers=self._headers(body, now), allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise refused_by_status(response.status)
                date = response.headers.get("Date", "")
                return _read(await _bounded(response))
        except TencentCloudSDKException as error:
            # Not chained: the service's words may quote what it was sent.
            raise fault(error, date, now) from None
        except (aiohttp.ClientError, OSError) as error:
            # Not chained either: some of them hold the request's headers.
            raise Unavailable(f"the connection failed ({type(error).__name__})") from None

    def _headers(self, body: bytes, now: float) -> dict[str, str]:
        secret_id, secret_key, token = self._secrets
        known = secret_id.reveal(), secret_key.reveal(), token.reveal() if token is not None else ""
        if problem := unusable(*known):
            raise Unauthorized(problem)
        return headers(
            body, host=self._host, region=self._region, secret_id=known[0], secret_key=known[1], token=known[2], now=now
        )


def unusable(secret_id: str, secret_key: str, token: str) -> str:
    """What is wrong with credentials that no account can have, in one sentence; "" for those that one may have."""
    for name, value in (("secret_id", secret_id), ("secret_key", secret_key), ("token", token)):
        if not _VISIBLE(value):
            return f"{name} holds a space or a character that no credential has; check where it is read from"
    return "secret_id holds a slash or a comma, which no credential has" if "/" in secret_id or "," in secret_id else ""


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    content, body = response.content, b""
    while not content.at_eof():  # mostly once: an answer is a kilobyte or two
        body += await content.readany()
        if len(body) > MAX_ANSWER_BYTES:
            raise Unavailable(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    return body


def _read(body: bytes) -> models.TextModerationResponse:
    """Raises TencentCloudSDKException for an error of the service, Unavailable for what is no answer of it."""
    try:
        answer = orjson.loads(body)["Response"]
        error = answer.get("Error")
        if error is not None:
            raise TencentCloudSDKException(error["Code"], error.get("Message", ""), answer.get("RequestId"))
        response = models.TextModerationResponse()
        response._deserialize(answer)
    except (ValueError, LookupError, TypeError, AttributeError, Warning) as problem:
        raise Unavailable(f"an answer that cannot be read ({type(problem).__name__})") from None
    return response
