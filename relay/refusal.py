"""What it means when an upstream does not answer as asked: errors for clients, without its addresses and keys."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from typing import Final

import aiohttp
import orjson
from aiohttp import hdrs

from relay.errors import Reject, RelayError, UpstreamBusy, UpstreamError, upstream_malformed
from relay.reply import Reply
from relay.secret import Secret

# An error body is an object of a few hundred bytes; what is longer is a page.
MAX_ERROR_BYTES: Final = 65_536
MAX_ERROR_CHARS: Final = 2_000
# How long it may take to come.
ERROR_BODY_TIMEOUT_S: Final = 5.0
# What an upstream may say of the client's own request.
CLIENT_ERRORS: Final = frozenset({400, 404, 413, 422})
_SECRETS: Final = re.compile(
    r"\bhttps?://\S+|\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?|\[[0-9a-fA-F:]{3,}\](?::\d+)?|\b(?:sk|key|Bearer)[-_ ][\w.*-]{6,}|"
    r"\b[\w-]+(?:\.[\w-]+)+:\d{2,5}\b"
)

# A code goes to the log, where nothing of a request may stand: it has to be one.
_WORD: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)


def unanswered(cause: BaseException) -> tuple[UpstreamError, str]:
    """The error for a head that did not come, and the reason as `retry_on` names it."""
    late = isinstance(cause, TimeoutError) and not isinstance(cause, aiohttp.ConnectionTimeoutError)
    unsent = isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    reason = "first_byte" if late else "connect" if unsent else "error"
    if late:
        error = UpstreamError(
            "The model server did not answer in time. Ask again later.",
            code="upstream_timeout",
            status=504,
            kind=reason,
        )
    else:
        error = UpstreamError(
            "The model server cannot be reached. Ask again later.",
            code="upstream_unavailable",
            status=502,
            kind=reason,
            acted=not unsent,
        )
    return error, reason


def wrong_head(reply: Reply, stream: bool) -> UpstreamError | None:
    """The error for a head with status 200 behind which cannot stand what was asked for."""
    headers = reply.headers
    wrong = _is_wrong(headers.get(hdrs.CONTENT_TYPE, ""), headers.get(hdrs.CONTENT_ENCODING, "identity"), stream)
    return upstream_malformed() if wrong else None


@lru_cache(64)
def _is_wrong(content_type: str, encoding: str, stream: bool) -> bool:
    # Some servers name no type for their streams.
    kind = content_type.partition(";")[0].strip().lower()
    wrong = kind in ("application/json", "text/html") if stream else kind in ("text/event-stream", "text/html")
    return wrong or encoding.lower() != "identity"


async def refusal(reply: Reply, api_key: Secret | None = None) -> RelayError:
    """The error for a status that is not 200; api_key: what the upstream was sent, and may quote."""
    status = reply.status
    if status in CLIENT_ERRORS:
        return await _client_error(reply, api_key.reveal() if api_key is not None else "")
    if status in (401, 403):
        return UpstreamError(
            "The model server does not accept the relay's credentials; tell the operator.",
            code="upstream_auth",
            kind="status",
        )
    if status == 429:
        retry_after = reply.headers.get(hdrs.RETRY_AFTER, "")
        return UpstreamBusy(retry_after if re.fullmatch(r"[\w,: -]{1,40}", retry_after) else None)
    # 503 says that nothing was done.
    return UpstreamError(
        "The model server failed. Ask again later.", code="upstream_error", kind="status", acted=status != 503
    )


async def _client_error(reply: Reply, api_key: str) -> Reject:
    """What the upstream says of the client's request, without addresses and keys."""
    try:
        body = b""
        async with asyncio.timeout(ERROR_BODY_TIMEOUT_S):
            while len(body) < MAX_ERROR_BYTES and (part := await reply.content.read(MAX_ERROR_BYTES - len(body))):
                body += part
        said = orjson.loads(body)["error"]
        message = str(said["message"])
    except (TimeoutError, aiohttp.ClientError, orjson.JSONDecodeError, KeyError, TypeError):
        said, message = {}, "The model server refuses this request."
    fields = {name: scrub(said[name], api_key) for name in ("type", "param", "code") if isinstance(said.get(name), str)}
    code = fields.get("code", "")
    return Reject(
        scrub(message, api_key),
        code=code if _WORD.fullmatch(code) else "invalid_request",
        status=reply.status,
        type=fields.get("type") or "invalid_request_error",
        param=fields.get("param"),
    )


def scrub(message: str, api_key: str = "") -> str:
    """A message without the key, and what looks like an address or a key, and no longer than anybody reads."""
    if api_key:
        message = message.replace(api_key, "…")
    return _SECRETS.sub("…", message)[:MAX_ERROR_CHARS]
