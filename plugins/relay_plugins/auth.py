"""`auth`: who may ask. Keys from the configuration; keys in the store come with it.

A key is hashed before it is looked up and never kept, compared or shown in full. Keys carry 256 random bits, so a fast
hash is enough: nothing can be guessed, and nothing is gained by making one guess slow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from typing import Annotated, ClassVar

from msgspec import Meta
from multidict import CIMultiDictProxy

from relay.errors import Reject
from relay.exchange import CALLER, Exchange, Key, Operation
from relay.options import Table
from relay.plugin import Plugin, Reply
from relay.secret import Secret

# What may be shown of a wrong key: so much that its owner knows it again.
_HEAD, _TAIL, _STARS, _SHOWN_FROM = 8, 4, 41, 20


class ConfiguredKey(Table, frozen=True, kw_only=True):
    """A key and the name under which logs and quotas know it."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    key: Secret


class Auth(Plugin):
    """Lets in requests that carry a known key as `Authorization: Bearer KEY`."""

    keys: tuple[ConfiguredKey, ...] = ()
    help_url: str = "https://platform.openai.com/account/api-keys"

    gives: ClassVar[tuple[Key[str], ...]] = (CALLER,)
    serves: ClassVar[frozenset[Operation]] = frozenset({"chat", "models"})

    _names: dict[bytes, tuple[bytes, str]] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError('there are no keys, so nobody could ask; add keys = [{ name = "…", key = { env = "…" } }]')
        self._names = {}
        names: set[str] = set()
        for entry in self.keys:
            if entry.name in names:
                raise ValueError(f"two keys are named {entry.name!r}; give each its own name")
            names.add(entry.name)
            key = entry.key.reveal()
            if key != key.strip():
                raise ValueError(f"the key {entry.name!r} begins or ends with a space, which no header can carry")
            digest = _digest(key)
            if digest in self._names:
                raise ValueError(f"the keys {self._names[digest][1]!r} and {entry.name!r} are the same; remove one")
            self._names[digest] = (digest, entry.name)

    async def on_request(self, ex: Exchange) -> Reply | None:
        key = self._bearer(ex.headers)
        digest = _digest(key)
        known, name = self._names.get(digest, (b"", ""))
        if not hmac.compare_digest(known, digest):
            raise Reject(
                f"Incorrect API key provided: {masked(key)}. You can find your API key at {self.help_url}.",
                code="invalid_api_key",
                status=401,
            )
        ex[CALLER] = name
        return None

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


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def masked(key: str) -> str:
    """A key as it may be shown: its head and tail; of a short one nothing."""
    if len(key) < _SHOWN_FROM:
        return "*" * len(key)
    # Bytes of a header that are no UTF-8 have come as lone surrogates, which JSON should not carry.
    return (key[:_HEAD] + "*" * _STARS + key[-_TAIL:]).encode("utf-8", "replace").decode()
