"""`relay reload`: a relay that runs reads its relay.toml again."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

import click
import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, hdrs

from relay.admin_reload import PATH
from relay.commands.attached import fail
from relay.commands.options import config_option
from relay.commands.running import addressed, url_option
from relay.config import ADMIN_TOKEN

# Longer than any plugin may take to open, one worker after the other.
_ANSWER_S: Final = 600.0
_CONNECT_S: Final = 5.0
_MAX_BYTES: Final = 16_777_216


@click.command("reload")
@config_option
@url_option
def reload(path: Path, url: str | None) -> None:
    """Have the relay that runs read its relay.toml again.

    New requests go by the new one, those under way end by the old one. If there is an error in it, nothing changes: this
    says on which line, and ends with status 1.
    """
    try:
        where, token = addressed(path, url)
    except SystemExit:
        click.echo("Nothing has changed: the relay was not asked.", err=True)
        sys.exit(1)
    try:
        status, body = asyncio.run(_ask(where.rstrip("/") + PATH, token))
    except (ClientError, TimeoutError, OSError) as error:
        fail(
            f"The relay at {where} does not answer ({type(error).__name__}); is it running? If [admin] was changed in {path} "
            f"since it was started, say by --url where it listens, with its token in {ADMIN_TOKEN}."
        )
    if status == 200:
        click.echo("Reloaded.")
        return
    click.echo(_message(status, body), err=True)
    sys.exit(1)


async def _ask(url: str, token: str) -> tuple[int, bytes]:
    timeout = ClientTimeout(total=_ANSWER_S, connect=_CONNECT_S)
    headers = {hdrs.AUTHORIZATION: f"Bearer {token}"}
    async with (
        ClientSession(timeout=timeout, trust_env=False) as session,
        session.post(url, headers=headers, allow_redirects=False) as response,
    ):
        body = b""
        async for part in response.content.iter_chunked(65_536):
            body += part
            if len(body) > _MAX_BYTES:
                break
        return response.status, body


def _message(status: int, body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"What answers there is no relay's admin listener, or an older relay's (status {status})."
