"""The moderator `webhook`: what an endpoint is sent with a text, and in whose name."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Final, Literal
from uuid import uuid4

from msgspec import Meta
from yarl import URL

from relay.moderator import PASS, Context, Moderator, Unauthorized, Verdict
from relay.plugin import Services
from relay.secret import Secret
from relay_plugins.webhook import openai, plain, signature
from relay_plugins.webhook.endpoint import Endpoint

_TOKEN_CHARS: Final = re.compile(r"[!-~]+").fullmatch
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9-]+").fullmatch
_HEADER_VALUE: Final = re.compile(r"[ -~]+").fullmatch
_OURS: Final = frozenset(
    "accept-encoding connection content-encoding content-length content-type expect host transfer-encoding upgrade "
    "webhook-id webhook-signature webhook-timestamp".split()
)


class Webhook(Moderator):
    """Asks an HTTP endpoint about each text, by POST.

    url: of the endpoint; http:// sends texts unencrypted. token: sent as `Authorization: Bearer …`. headers: more of them,
    by name, as secrets. From files they are read again when they change.
    api: "plain" is the relay's own shape, which is shown in docs/moderation.md; "openai" that of OpenAI's moderation API, with `model`.
    who: with "plain", tell the endpoint the name of the key and the request's `user`; verdicts are then kept for nobody else.
    signing_key: sign what is sent as the Standard Webhooks specification says; whsec_ and 24 to 64 bytes in base64.
    calls_per_second: by all processes together. connections: open at a time, by each process; a call without one waits for
    it within its deadline.
    """

    labels: ClassVar[frozenset[str]] = openai.CATEGORIES

    url: str
    token: Secret | None = None
    headers: dict[str, Secret] = dataclasses.field(default_factory=dict)
    api: Literal["plain", "openai"] = "plain"
    model: str = "omni-moderation-latest"
    who: bool = False
    signing_key: Secret | None = None
    calls_per_second: Annotated[float, Meta(gt=0)] = 100
    connections: Annotated[int, Meta(ge=1, le=10_000)] = 100

    _url: URL = dataclasses.field(init=False)
    _endpoint: Endpoint = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self._url = _address(self.url)
        for name in self.headers:
            if not _HEADER_NAME(name):
                raise ValueError("headers holds a name that is none; write one as in X-Api-Key")
            if name.lower() in _OURS or (name.lower() == "authorization" and self.token is not None):
                raise ValueError(f"headers.{name} is set by the relay; leave it out")
        if self.api == "openai" and self.who:
            raise ValueError('api = "openai" has no field for who asks; leave `who` out')
        self._credentials()
        if self.signing_key is not None:
            signature.key(self.signing_key.reveal())

    @property
    def account(self) -> str:
        return f"webhook {self.url} {self.token.reveal() if self.token is not None else ''}"

    @property
    def cacheable(self) -> bool:
        return not self.who

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        if self._url.scheme == "http" and not _is_loopback(self._url.host or ""):
            services.log.warning("texts go to the moderator unencrypted", moderator=self.known_as, host=self._url.host)
        async with Endpoint.connected(self._url, self.connections) as self._endpoint:
            yield

    async def check(self, text: str, context: Context) -> Verdict:
        if not text:
            return PASS
        # Half a surrogate pair cannot be sent; a question mark in its place keeps every position.
        sent = text.encode("utf-8", "replace").decode()
        if self.api == "openai":
            return openai.verdict(await self._ask(openai.ask(sent, self.model)))
        return plain.verdict(await self._ask(plain.ask(sent, context, who=self.who)), text)

    async def _ask(self, body: bytes) -> bytes:
        """Secrets are revealed for each call: one that comes from a file may change, also to what cannot be used."""
        try:
            headers = self._credentials()
            if self.signing_key is not None:
                key = signature.key(self.signing_key.reveal())
                headers.update(signature.headers(key, f"msg_{uuid4().hex}", time.time(), body))
        except ValueError as problem:
            raise Unauthorized(str(problem)) from None
        return await self._endpoint.ask(body, headers)

    def _credentials(self) -> dict[str, str]:
        """Raises ValueError with the remedy."""
        revealed = {name: value.reveal() for name, value in self.headers.items()}
        for name, value in revealed.items():
            if not _HEADER_VALUE(value):
                raise ValueError(f"headers.{name} holds a character that no header has; check where it is read from")
        if self.token is not None:
            token = self.token.reveal()
            if not _TOKEN_CHARS(token):
                raise ValueError("token holds a space or a character that no token has; check where it is read from")
            revealed["Authorization"] = f"Bearer {token}"
        return revealed


def _address(url: str) -> URL:
    """Raises ValueError with the remedy, and without the address: a password may stand in it."""
    example = 'write it as in "https://moderator.example/check"'
    try:
        found = URL(url)
        whole = found.scheme in ("http", "https") and bool(found.host) and bool(found.port)
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"url is no address; {example}")
    if found.user is not None or found.password is not None:
        raise ValueError("url names a user or a password; give it as `token`, or in `headers`")
    if found.raw_fragment:
        raise ValueError(f"url has a part behind #, which is never sent; {example}")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
