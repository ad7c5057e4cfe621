"""The keys that are kept in a store: made, changed, rotated and deleted there, and looked up by the digest of a secret.

A secret is `sk-` and 256 random bits. It is shown once; what is kept is its SHA-256, and a fast hash is enough for it:
nothing can be guessed, so nothing is gained by making one guess slow. It is hashed before anything is looked up.

Each change is one script: it takes effect as a whole, writes its line of the audit log, and raises the version of the
keys, by which other processes learn that something is new (`relay.known`). Fields change one by one, so two changes at
the same time lose nothing of each other.

What is refused is raised as Reject, for the admin API and the command line alike; a store in trouble as StoreError.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET

from relay.errors import Reject
from relay.keys import MAX_LABELS, ApiKey, KeyChange, KeyView, Limits, NewKey, SecretView
from relay.options import nearest
from relay.secret import Secret
from relay.store.port import Script, Store

TAG: Final = "keys"

MAX_OVERLAP_S: Final = 366 * 86_400
# That work at the same time: the newest, and those that it is to replace.
MAX_SECRETS: Final = 8
MAX_PAGE: Final = 500

# Among so many names the one is looked for that was probably meant.
_NEIGHBOURS: Final = 1_000
_ISSUED: Final = re.compile(r"sk-[A-Za-z0-9_-]{43}", re.ASCII)
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)

_CREATE, _CHANGE, _ROTATE, _DELETE, _FIND, _SHOW, _LIST = (
    Script("keys_common", f"keys_{name}") for name in ("create", "change", "rotate", "delete", "find", "show", "list")
)


class Issued(NamedTuple):
    """A key and a new secret of it, which nobody can be shown a second time."""

    key: KeyView
    secret: Secret


class Page(NamedTuple):
    """Keys by name. next: after whom the next page begins; None: there is none."""

    keys: tuple[KeyView, ...]
    next: str | None


class Admitted(NamedTuple):
    """A key as it is known by one of its secrets. ends: when that secret or its key ends, in seconds of the store's clock."""

    key: ApiKey
    disabled: bool
    ends: float | None


class Found(NamedTuple):
    """What was found for a digest. version: of all keys; now: the store's clock, in seconds since 1970."""

    version: int
    now: float
    admitted: Admitted | None


class Keyring:
    """See the head of this file. now: the clock by which an expiry is in the past, in seconds since 1970."""

    def __init__(self, store: Store, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now = now
        self._records = store.key(TAG, "records")  # name → record
        self._digests = store.key(TAG, "digests")  # digest of a secret → name
        self._names = store.key(TAG, "names")  # all of them, in order
        self._version = version_key(store)
        self._audit = audit_key(store)

    # Changes. who: "cli:NAME" or "admin:ADDRESS", for the audit log.

    async def create(self, new: NewKey, who: str) -> Issued:
        """Make a key. Raises Reject if its name is taken."""
        self._check_expiry(new.expires_at)
        secret, hint = _new_secret()
        answer = await self._store.run(
            _CREATE,
            [self._records, self._digests, self._names, self._version, self._audit],
            [
                new.name,
                digest(secret).hex(),
                hint,
                who,
                "key.create",
                _details(new, hint=hint),
                *(part for pair in _fields(new) for part in pair),
            ],
        )
        if answer[0] == b"taken":
            raise name_taken(new.name)
        return Issued(_view(new.name, answer[1], answer[2]), Secret(secret))

    async def change(self, name: str, change: KeyChange, who: str) -> KeyView:
        """Change what `change` names, and nothing else."""
        if isinstance(change.expires_at, datetime):
            self._check_expiry(change.expires_at)
        answer = await self._store.run(
            _CHANGE,
            [self._records, self._version, self._audit],
            [
                name,
                who,
                "key.change",
                _details(change),
                MAX_LABELS,
                *(part for step in _steps(change) for part in step),
            ],
        )
        if answer[0] == b"unknown":
            raise await self._unknown(name)
        if answer[0] == b"labels":
            raise Reject(
                f"A key has at most {MAX_LABELS} labels; take some away first.", code="too_many_labels", status=409
            )
        return _view(name, answer[1], answer[2])

    async def rotate(self, name: str, overlap_s: int, who: str) -> Issued:
        """Give a key a new secret; the others work `overlap_s` seconds longer, or less if that was said before."""
        if not 0 <= overlap_s <= MAX_OVERLAP_S:
            raise Reject(f"overlap_s is a number of seconds from 0 to {MAX_OVERLAP_S:,}.", code="invalid_overlap_s")
        secret, hint = _new_secret()
        answer = await self._store.run(
            _ROTATE,
            [self._records, self._digests, self._version, self._audit],
            [
                name,
                digest(secret).hex(),
                hint,
                who,
                "key.rotate",
                _details(None, hint=hint, overlap_s=overlap_s),
                overlap_s * 1000,
                MAX_SECRETS,
            ],
        )
        if answer[0] == b"unknown":
            raise await self._unknown(name)
        if answer[0] == b"secrets":
            raise Reject(
                f"This key has {MAX_SECRETS} secrets that still work; wait until one has ended, or rotate with an overlap of 0.",
                code="too_many_secrets",
                status=409,
            )
        return Issued(_view(name, answer[1], answer[2]), Secret(secret))

    async def delete(self, name: str, who: str) -> None:
        """Delete a key. What its quota account holds stays, and is a later key's of the same name."""
        if not await self._store.run(
            _DELETE,
            [self._records, self._digests, self._names, self._version, self._audit],
            [name, who, "key.delete", "{}"],
        ):
            raise await self._unknown(name)

    # Questions

    async def show(self, name: str) -> KeyView:
        now, raw = await self._store.run(_SHOW, [self._records], [name])
        if raw is None:
            raise await self._unknown(name)
        return _view(name, raw, now)

    async def page(self, after: str = "", limit: int = 100) -> Page:
        """Up to `limit` keys whose names come after `after`."""
        now, *rest = await self._store.run(_LIST, [self._names, self._records], [after, limit + 1])
        keys = tuple(_view(name.decode(), raw, now) for name, raw in zip(rest[::2], rest[1::2], strict=True))
        return Page(keys[:limit], keys[limit - 1].name if len(keys) > limit else None)

    async def find(self, digest: bytes) -> Found:
        """The key that has the secret with this digest, and the version of the keys at that moment."""
        hexadecimal = digest.hex()
        version, now, name, raw = await self._store.run(
            _FIND, [self._records, self._digests, self._version], [hexadecimal]
        )
        admitted = None if raw is None else _admitted(name.decode(), raw, hexadecimal)
        return Found(int(version), int(now) / 1000, admitted)

    def _check_expiry(self, at: datetime | None) -> None:
        if at is not None and at.timestamp() <= self._now():
            raise Reject("expires_at lies in the past; to end a key now, disable it.", code="invalid_expires_at")
        if at is not None and at > _LATEST:  # in the year 10000, by UTC
            raise Reject(
                "expires_at lies too far ahead; leave it out for a key without an end.", code="invalid_expires_at"
            )

    async def _unknown(self, name: str) -> Reject:
        page = await self.page(limit=_NEIGHBOURS)
        return unknown_name(name, [key.name for key in page.keys])


def digest(secret: str) -> bytes:
    """By which a secret is known."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def is_issued(secret: str) -> bool:
    """Whether it has the shape of a secret that was made here. One that has not is in no store."""
    return _ISSUED.fullmatch(secret) is not None


def version_key(store: Store) -> str:
    """Where the version of the keys stands: a counter."""
    return store.key(TAG, "version")


def audit_key(store: Store) -> str:
    """Where the audit log stands: a stream."""
    return store.key(TAG, "audit")


def name_taken(name: str, where: str = "the store") -> Reject:
    return Reject(
        f"There is a key named {name!r} in {where} already; give the new one another name.",
        code="key_exists",
        status=409,
    )


def unknown_name(name: str, known: Sequence[str]) -> Reject:
    near = nearest(name, known)
    hint = f"did you mean {near!r}?" if near else "GET /admin/keys and `relay keys list` say which there are."
    return Reject(f"There is no key named {name!r} in the store; {hint}", code="key_not_found", status=404)


def _new_secret() -> tuple[str, str]:
    """A secret, and what may be shown of it: as much as of a wrong one."""
    secret = "sk-" + secrets.token_urlsafe(32)
    return secret, f"{secret[:8]}…{secret[-4:]}"


def _details(said: NewKey | KeyChange | None, **more: object) -> bytes:
    """What the audit log says of a change, as a JSON object. The key's name stands beside it."""
    told = msgspec.to_builtins(said) if said is not None else {}
    told.pop("name", None)
    return msgspec.json.encode({**told, **more})


# Records, as keys_create.lua describes them


def _ms(at: datetime) -> str:
    return str((at - _EPOCH) // timedelta(milliseconds=1))


def _moment(ms: str | bytes) -> datetime:
    return _EPOCH + timedelta(milliseconds=int(ms))


def _fields(new: NewKey) -> Iterator[tuple[str, str]]:
    """The fields of a record that are said."""
    if new.expires_at is not None:
        yield "expires", _ms(new.expires_at)
    if new.models is not None:
        yield "models", _json(new.models)
    for limit, number in msgspec.structs.asdict(new.limits).items():
        if number is not None:
            yield f"limit:{limit}", str(number)
    for label, value in new.labels.items():
        yield f"label:{label}", value


def _steps(change: KeyChange) -> Iterator[tuple[str, str, str]]:
    """What keys_change.lua is to do."""
    if change.disabled is not UNSET:
        yield _set("disabled", "1" if change.disabled else None)
    if change.expires_at is not UNSET:
        yield _set("expires", None if change.expires_at is None else _ms(change.expires_at))
    if change.models is not UNSET:
        yield _set("models", None if change.models is None else _json(change.models))
    for kind, changes in (("limit:", change.limits), ("label:", change.labels)):
        if changes is None:
            yield "clear", kind, ""
        elif changes is not UNSET:
            for name, value in (changes if isinstance(changes, dict) else msgspec.structs.asdict(changes)).items():
                if value is not UNSET:
                    yield _set(kind + name, None if value is None else str(value))


def _set(field: str, value: str | None) -> tuple[str, str, str]:
    return ("drop", field, "") if value is None else ("set", field, value)


def _json(models: Sequence[str]) -> str:
    return msgspec.json.encode(tuple(dict.fromkeys(models))).decode()


def _part(record: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {field.removeprefix(prefix): value for field, value in record.items() if field.startswith(prefix)}


def _record(raw: bytes) -> dict[str, str]:
    return msgspec.json.decode(raw, type=dict[str, str])


def _api_key(name: str, record: Mapping[str, str]) -> ApiKey:
    return ApiKey(
        name=name,
        models=msgspec.json.decode(record["models"], type=tuple[str, ...]) if "models" in record else None,
        limits=_limits(_part(record, "limit:")),
        labels=_part(record, "label:"),
    )


def _limits(numbers: Mapping[str, str]) -> Limits:
    # A later version of the relay may have written limits that this one does not know.
    return Limits(**{name: int(number) for name, number in numbers.items() if name in Limits.__struct_fields__})


def _admitted(name: str, raw: bytes, digest: str) -> Admitted | None:
    record = _record(raw)
    secret = record.get(f"secret:{digest}")
    if secret is None:
        return None
    ends = [int(ms) / 1000 for ms in (record.get("expires", "0"), secret.split(" ")[2]) if ms != "0"]
    return Admitted(_api_key(name, record), "disabled" in record, min(ends, default=None))


def _view(name: str, raw: bytes, now_ms: Any) -> KeyView:
    record = _record(raw)
    key = _api_key(name, record)
    expires = record.get("expires")
    expired = expires is not None and int(expires) <= int(now_ms)
    shown = (value.split(" ") for value in _part(record, "secret:").values())
    views = [
        SecretView(hint=hint, created_at=_moment(created), ends_at=_moment(ends) if ends != "0" else None)
        for hint, created, ends in shown
    ]
    return KeyView(
        name=name,
        state="disabled" if "disabled" in record else "expired" if expired else "active",
        created_at=_moment(record["created"]),
        expires_at=_moment(expires) if expires is not None else None,
        models=key.models,
        limits=key.limits,
        labels=key.labels,
        secrets=tuple(sorted(views, key=lambda view: (view.created_at, view.ends_at is None), reverse=True)),
    )
