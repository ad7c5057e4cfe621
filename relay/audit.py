"""The audit log: who changed what, and when by the store's clock. No secret stands in it.

It is a stream in the store, of the last 100,000 changes or a few more. What is changed by a script of the keys is told
there by that very script; what is changed elsewhere is noted here.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from relay.errors import Reject
from relay.keyring import audit_key
from relay.keys import Moment
from relay.store.port import Script, Store

_NOTE: Final = Script("keys_note")
_LOG: Final = Script("keys_log")
_ID: Final = re.compile(r"(?!0+-0+\Z)[0-9]{1,15}-[0-9]{1,15}")  # before 0-0 is nothing, says the store
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One change. who: "cli:USER" or "admin:ADDRESS". what: as in "key.rotate". name: of the key that it was done to."""

    id: str
    at: Moment
    who: str
    what: str
    name: str
    details: dict[str, Any]


class AuditPage(NamedTuple):
    """Changes, the latest first. next: before which one the next page begins; None: there is none."""

    entries: tuple[AuditEntry, ...]
    next: str | None


class AuditLog:
    """See the head of this file."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stream = audit_key(store)

    async def note(self, who: str, what: str, name: str, details: dict[str, object]) -> None:
        """Write a line. Raises StoreError."""
        await self._store.run(_NOTE, [self._stream], [who, what, name, msgspec.json.encode(details)])

    async def page(self, before: str = "", limit: int = 100) -> AuditPage:
        """Up to `limit` changes that came before the one with the id `before`. Raises Reject, StoreError."""
        if before and not _ID.fullmatch(before):
            raise Reject("before is the id of an entry of the audit log.", code="invalid_before")
        raw = await self._store.run(_LOG, [self._stream], [before, limit + 1])
        entries = tuple(_entry(place.decode(), fields) for place, fields in raw)
        return AuditPage(entries[:limit], entries[limit - 1].id if len(entries) > limit else None)


def _entry(id: str, fields: list[bytes]) -> AuditEntry:
    said = {fields[i].decode(): fields[i + 1] for i in range(0, len(fields), 2)}
    return AuditEntry(
        id=id,
        at=_EPOCH + timedelta(milliseconds=int(id.partition("-")[0])),
        who=said["who"].decode(),
        what=said["what"].decode(),
        name=said["name"].decode(),
        details=msgspec.json.decode(said["details"], type=dict[str, Any]),
    )
