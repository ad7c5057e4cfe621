"""The service at the other end of a connection: one call out, one answer or one `NoVerdict` in.

The SDK's own clients are not used: they cost more than twice the CPU of a call, block or open a connection for every
call, and retry wrongly. Here are its models, its signature and its errors over the relay's own connections, which are
kept. No time-outs and no retries: the relay cancels, and asks again.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

import aiohttp
import orjson
from aiohttp.http import HttpProcessingError
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.tms.v20201229 import models
from yarl import URL

from relay.connections import Connections, Connector
from relay.moderator import Unauthorized, Unavailable
from relay.reply import Reply
from relay.secret import Secret
from relay_plugins.tencent.faults import fault, refused_by_status
from relay_plugins.tencent.signature import headers

MAX_ANSWER_BYTES: Final = 1024 * 1024
_KEEP_ALIVE_S: Final = 30
_VISIBLE: Final = re.compile(r"[!-~]*").fullmatch
# Nothing is gained by compressing a kilobyte.
_BEGINNING: Final = "POST / HTTP/1.1\r\nUser-Agent: moderelay\r\nAccept-Encoding: identity"


class Service:
    """One account at one endpoint.

    The secrets are revealed for each call: one that comes from a file may change.
    """

    def __init__(
        self, connections: Connections, url: URL, region: str, secrets: tuple[Secret, Secret, Secret | None]
    ) -> None:
        self._connections = connections
        self._host = url.host_port_subcomponent or ""
        self._region = region
        self._secrets = secrets

    @classmethod
    @asynccontextmanager
    async def connected(
        cls, url: URL, region: str, secret_id: Secret, secret_key: Secret, token: Secret | None
    ) -> AsyncIterator[Self]:
        """A service with connections of its own, closed after the block."""
        connector = Connector()
        connections = Connections(url, connector, idle_s=_KEEP_ALIVE_S)
        try:
            yield cls(connections, url, region, (secret_id, secret_key, token))
        finally:
            connections.close()
            await connector.close()

    async def ask(self, request: models.TextModerationRequest) -> models.TextModerationResponse:
        """Raises NoVerdict."""
        body = orjson.dumps(request._serialize())
        now = time.time()
        head = self._head(body, now)
        try:
            reply = await self._connections.post(head, body)
            try:
                if reply.status != 200:
                    raise refused_by_status(reply.status)
                return _read(await _bounded(reply))
            finally:
                reply.close()  # if it has not ended
        except TencentCloudSDKException as error:
            # Not chained: the service's words may quote what it was sent.
            raise fault(error, reply.headers.get("Date", ""), now) from None
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            # Not chained either: some of them hold the request's headers.
            raise Unavailable(f"the connection failed ({type(error).__name__})") from None

    def _head(self, body: bytes, now: float) -> bytes:
        secret_id, secret_key, token = self._secrets
        known = secret_id.reveal(), secret_key.reveal(), token.reveal() if token is not None else ""
        if problem := unusable(*known):
            raise Unauthorized(problem)
        signed = headers(
            body, host=self._host, region=self._region, secret_id=known[0], secret_key=known[1], token=known[2], now=now
        )
        return "\r\n".join((_BEGINNING, *map(": ".join, signed.items()))).encode()


def unusable(secret_id: str, secret_key: str, token: str) -> str:
    """What is wrong with credentials that no account can have, in one sentence; "" for those that one may have."""
    for name, value in (("secret_id", secret_id), ("secret_key", secret_key), ("token", token)):
        if not _VISIBLE(value):
            return f"{name} holds a space or a character that no credential has; check where it is read from"
    return "secret_id holds a slash or a comma, which no credential has" if "/" in secret_id or "," in secret_id else ""


async def _bounded(reply: Reply) -> bytes:
    content, body = reply.content, b""
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
