"""`auth`: who may ask. Keys from the configuration, and those that an operator has made in the store.

A key is hashed before it is looked up and never kept, compared or shown in full. Keys carry 256 random bits, so a fast
hash is enough: nothing can be guessed, and nothing is gained by making one guess slow.

A key of the store that has been let in is known for a while (`relay.known`): in the steady state no request asks the
store, and a key that is disabled, deleted or rotated away ends in every process within a second. While the store is away
the keys that were good within the last minute still are, and the reply's header `x-relay-degraded` says so; about all
others nobody knows, and the answer is 503.
"""

from __future__ import annotations

import dataclasses
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from multidict import CIMultiDictProxy

from relay.degraded import degraded
from relay.errors import Reject, Unavailable, unsupported_model
from relay.exchange import CALLER, Exchange, Key, Operation
from relay.keyring import Keyring, digest, is_issued
from relay.keys import API_KEY, ApiKey, name_problem
from relay.known import KnownKeys
from relay.options import Table
from relay.plugin import Plugin, Reply, Services
from relay.secret import Secret
from relay.store.port import StoreError

# What may be shown of a wrong key: so much that its owner knows it again.
_HEAD, _TAIL, _STARS, _SHOWN_FROM = 8, 4, 41, 20


class ConfiguredKey(Table, frozen=True, kw_only=True):
    """A key and the name under which logs and quotas know it."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    key: Secret


class Auth(Plugin):
    """Lets in requests that carry a known key as `Authorization: Bearer KEY`.

    keys: those of the configuration, beside the ones in the store. help_url: where refusals send a client for a key.
    """

    keys: tuple[ConfiguredKey, ...] = ()
    help_url: str = "https://platform.openai.com/account/api-keys"

    guards: ClassVar[bool] = True
    gives: ClassVar[tuple[Key[Any], ...]] = (CALLER, API_KEY)
    serves: ClassVar[frozenset[Operation]] = frozenset({"chat", "models", "quota"})

    _configured: dict[bytes, tuple[bytes, ApiKey]] = dataclasses.field(init=False)
    _known: KnownKeys | None = dataclasses.field(init=False)  # None where there is no store
    _services: Services = dataclasses.field(init=False)
    _ambiguous: set[str] = dataclasses.field(init=False)  # names of the configuration; gone once they were warned of

    def __post_init__(self) -> None:
        self._configured = {}
        self._known = None
        names: set[str] = set()
        for entry in self.keys:
            if entry.name in names:
                raise ValueError(f"two keys are named {entry.name!r}; give each its own name")
            if problem := name_problem(entry.name):
                raise ValueError(f"the key {entry.name!r} cannot be named so: {problem}")
            names.add(entry.name)
            key = entry.key.reveal()
            if key != key.strip():
                raise ValueError(f"the key {entry.name!r} begins or ends with a space, which no header can carry")
            known = digest(key)
            if known in self._configured:
                other = self._configured[known][1].name
                raise ValueError(f"the keys {other!r} and {entry.name!r} are the same; remove one")
            self._configured[known] = (known, ApiKey(name=entry.name))
        self._ambiguous = names

    @property
    def key_names(self) -> tuple[str, ...]:
        """The names that the configuration has taken."""
        return tuple(entry.name for entry in self.keys)

    def storeless_problem(self) -> str | None:
        """With `memory:` there are the configured keys and no others."""
        if self.keys:
            return None
        return (
            'there are no keys, so nobody could ask; add keys = [{ name = "…", key = { env = "…" } }], '
            "or write embedded: in store.url, for keys made by `relay keys create`"
        )

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        self._services = services
        if services.store is None or services.pulse is None:
            yield
            return
        self._known = KnownKeys(Keyring(services.store), services.pulse)
        try:
            yield
        finally:
            await self._known.close()

    async def on_request(self, ex: Exchange) -> Reply | None:
        secret = self._bearer(ex.headers)
        hashed = digest(secret)
        known, key = self._configured.get(hashed, (b"", None))
        if key is None or not hmac.compare_digest(known, hashed):
            key = await self._kept(ex, secret, hashed)
        # Of a key for all models the request is not read: others may refuse it before that.
        if key.models is not None and ex.operation == "chat" and not all(map(key.may_ask, ex.request.models)):
            raise unsupported_model()
        ex[CALLER] = key.name
        ex[API_KEY] = key
        return None

    async def _kept(self, ex: Exchange, secret: str, hashed: bytes) -> ApiKey:
        """The key of the store that has this secret. Raises a refusal."""
        if self._known is None or not is_issued(secret):
            raise self._wrong(secret)
        try:
            admitted, ended, unasked = await self._known.find(hashed)
        except StoreError:
            raise Unavailable(
                "Whether this API key is valid cannot be found out at the moment. Try again in a few seconds.",
                code="auth_unavailable",
                headers={"Retry-After": "2"},
            ) from None
        if admitted is None or admitted.disabled:
            raise self._wrong(secret)
        if ended:
            raise self._wrong(secret, "This API key has expired")
        if unasked:
            degraded(ex, self._services.metrics, "auth")
        if admitted.key.name in self._ambiguous:
            self._ambiguous.discard(admitted.key.name)
            self._services.log.warning(
                "a key of the store has the name of a configured one; limits and quotas take them for one",
                key=admitted.key.name,
            )
        return admitted.key

    def _wrong(self, secret: str, what: str = "Incorrect API key provided") -> Reject:
        return Reject(
            f"{what}: {masked(secret)}. You can find your API key at {self.help_url}.",
            code="invalid_api_key",
            status=401,
        )

    def _bearer(self, headers: CIMultiDictProxy[str]) -> str:
        scheme, _, key = headers.get("Authorization", "").partition(" ")  # the relay has refused several
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Reject(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if "
                "you're accessing the API from your browser and are prompted for a username and password. You can "
                f"obtain an API key from {self.help_url}.",
                code="invalid_api_key",
                status=401,
                type="talk_api_error",
            )
        return key


def masked(key: str) -> str:
    """A key as it may be shown: its head and tail; of a short one nothing."""
    if len(key) < _SHOWN_FROM:
        return "*" * len(key)
    # Bytes of a header that are no UTF-8 have come as lone surrogates, which JSON should not carry.
    return (key[:_HEAD] + "*" * _STARS + key[-_TAIL:]).encode("utf-8", "replace").decode()
