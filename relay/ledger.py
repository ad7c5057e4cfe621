"""What accounts have and what they used: reserve, renew, settle. Each is one script of the store, whole or not at all.

    reserve(id, least, want)      before the request: admitted if `least` is available; up to `want` is set aside
    renew(id, spent, want)        while it streams: the lease begins anew, the reservation grows
    settle(id, amount)            at its end, however it ended: what it came to is charged, the rest is free again

An id may be said more than once, since answers get lost; it takes effect once. The balance never goes below zero, nor
below what is reserved: what a request came to beyond that is `short`, which nobody pays.

A reservation lives for `lease_s` after the last word about it. If its relay dies it is swept: charged what was last known
to be spent. A relay that was only slow may still renew it, which opens it again, or settle it, which corrects the charge.
Sweeping is part of every call for the account; there is no list of all accounts, which in a cluster would be on another
node. So an account that nobody uses is swept at its next use, or by `look` or `sweep`; nobody sees the difference.

What an id came to is remembered for 24 hours at least (`REMEMBERED_S`). After that the same id is a new request: who keeps
a settlement for longer must not bring it any more. Idempotency keys of top-ups are kept for ever.

Every change of a balance is an entry: its balance is that of the entry before it plus its amount, and the last one's is the
account's. Some 10,000 are kept for each account.

A store that evicts keys, or loses its last writes in a failover, loses accounts or bookings; the first must be ruled out by
its configuration (`maxmemory-policy noeviction`), the second is for the operator to know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

import orjson

from relay.failpoint import hit
from relay.store.port import Script, Store

Kind = Literal["grant", "topup", "charge", "sweep", "correction"]

AMOUNT_MAX: Final = 2**53 - 1
"""The highest amount, and the most that an account may get in all: a script counts in doubles, which are exact so far."""

REMEMBERED_S: Final = 24 * 3600
"""For how long an id that is settled or swept is known, at least."""

_NOTHING: Mapping[str, str | int] = MappingProxyType({})
_NOTE_MAX = 200  # characters of each text in a note
_PLACE = re.compile(r"(?!0+-0+\Z)[0-9]{1,15}-[0-9]{1,15}")  # before 0-0 is nothing, says the store
_UNIT = re.compile(r"[a-z][a-z0-9_]*")
# Accounts whose keys' names are at hand; to make them costs more than to ask the store.
_NAMES_KEPT = 4096

_RESERVE, _RENEW, _SETTLE, _LOOK, _TOP_UP = (
    Script("ledger_account", f"ledger_{name}") for name in ("reserve", "renew", "settle", "look", "top_up")
)
_ENTRIES = Script("ledger_entries")


class Reservation(NamedTuple):
    """So much is set aside, in all, for `lease_s` from now."""

    amount: int
    lease_s: float


class Refusal(NamedTuple):
    """There is too little: of `balance`, `available` is not reserved."""

    balance: int
    available: int


class Gone(NamedTuple):
    """The id is settled already, at `charged`."""

    charged: int
    balance: int


class Settled(NamedTuple):
    """What became of an amount: charged + short. repeated: by an earlier call.

    balance: as it is booked; leases of others that have ended may be charged to it yet, if there are very many.
    """

    charged: int
    short: int
    balance: int
    repeated: bool


class Standing(NamedTuple):
    """How an account stands: balance − reserved is available; balance = granted − used + what top-ups brought.

    fresh: it was never used; `granted` is what it is going to be.
    """

    balance: int
    reserved: int
    used: int
    granted: int
    fresh: bool


class TopUp(NamedTuple):
    """The balance is this now. repeated: the idempotency key was known, nothing was added."""

    balance: int
    repeated: bool


class Entry(NamedTuple):
    """One change of a balance.

    place: where it stands, for `before`. amount: below zero if it was taken. balance: after it.
    id: of the request, or the idempotency key of a top-up. time_s: of the store's clock, since 1970.
    A grant is the first; a charge is a request's; a sweep is that of a request whose relay fell silent; a correction sets
    right a sweep, or is a top-up below zero.
    """

    place: str
    kind: Kind
    amount: int
    balance: int
    id: str
    time_s: float
    note: dict[str, str | int]


class Conflict(ValueError):
    """An idempotency key, or the id of a request, stands for something else already."""


class Overdraft(ValueError):
    """A balance would fall below what is reserved, or what the account ever got rise above `AMOUNT_MAX`."""


@runtime_checkable
class Metered(Protocol):
    """A plugin that keeps a ledger. grant: what an account has at its first use, in `unit`."""

    unit: str
    grant: int


class Ledger:
    """The accounts of one unit (points, characters, tokens: only a name here).

    grant: what each account has at its first use. Whichever call is first books it, so every Ledger of a unit has to be
    made with the same. lease_s: see above.

    Each method raises StoreError, and ValueError for what is no amount.
    """

    def __init__(self, store: Store, unit: str, *, grant: int = 0, lease_s: float = 30.0) -> None:
        if not _UNIT.fullmatch(unit):
            raise ValueError(f"{unit!r} is no unit; write a word as in 'points'")
        if lease_s < 0.001:
            raise ValueError(f"a lease of {lease_s} s is none; write a number of seconds as in 30")
        self._store = store
        self._unit = unit
        self._grant = _amount(grant)
        self._lease_s = lease_s
        self._lease_ms = round(lease_s * 1000)
        self._names = lru_cache(_NAMES_KEPT)(self._name_keys)

    async def reserve(self, account: str, id: str, *, least: int, want: int) -> Reservation | Refusal:
        """Admit a request if `least` is available, and set aside `want` or as much of it as there is.

        `least` counts as spent: a sweep charges it if nothing more is heard. Where it is 0 an empty account is admitted,
        with a reservation of 0. A repeat answers the same; one whose lease has ended is opened again. A refusal leaves no
        trace. Raises Conflict for the id of a request that is settled.
        """
        if _amount(least) > _amount(want):
            raise ValueError(f"least {least} is more than want {want}")
        hit("before_reserve")
        keys = self._keys(account)
        answer = await self._store.run(_RESERVE, keys, (self._grant, self._lease_ms, _name(id), least, want))
        hit("after_reserve")
        match answer:
            case [1, amount]:
                return Reservation(amount, self._lease_s)
            case [0, balance, available]:
                return Refusal(balance, available)
            case _:
                raise Conflict(f"request {id!r} is settled already; every request needs an id of its own")

    async def renew(self, account: str, id: str, *, spent: int, want: int) -> Reservation | Gone:
        """A stream lives, has spent `spent` so far and is going to need `want` in all.

        It gets that, or as much of it as there is, and never less than it had; `spent` is what a sweep charges from now on,
        up to the reservation. One that was swept, or got lost in a failover, is opened again. Gone: it is settled.
        """
        hit("before_renew")
        args = (self._grant, self._lease_ms, _name(id), _amount(spent), _amount(want))
        answer = await self._store.run(_RENEW, self._keys(account), args)
        hit("after_renew")
        if answer[0] == 1:
            return Reservation(answer[1], self._lease_s)
        return Gone(answer[1], answer[2])

    async def settle(self, account: str, id: str, amount: int, note: Mapping[str, str | int] = _NOTHING) -> Settled:
        """Charge what a request came to, as far as its reservation and what is available beside it go.

        `note` stands in its entry; there is none if nothing is charged. A repeat answers the same.
        """
        hit("before_settle")
        args = (self._grant, _name(id), _amount(amount), _note(note))
        charged, short, balance, repeated = await self._store.run(_SETTLE, self._keys(account), args)
        hit("after_settle")
        return Settled(charged, short, balance, bool(repeated))

    async def release(self, account: str, id: str) -> Settled:
        """The request came to nothing."""
        return await self.settle(account, id, 0)

    async def look(self, account: str) -> Standing:
        """How it stands, leases that have ended being charged. Creates nothing."""
        standing, _ = await self._look(account)
        return standing

    async def sweep(self, account: str) -> int:
        """Charge the leases that have ended; how many those were."""
        _, swept = await self._look(account)
        return swept

    async def top_up(self, account: str, amount: int, *, key: str, note: str = "") -> TopUp:
        """Add `amount` once, however often this is said with the same idempotency key.

        Below zero it takes what is not reserved. Raises Conflict if the key stands for another amount, and Overdraft.
        """
        if amount == 0:
            raise ValueError("a top-up of 0 changes nothing; name an amount")
        _amount(abs(amount))
        text = _note({"note": note}) if note else ""
        args = (self._grant, _name(key), amount, text, AMOUNT_MAX)
        match await self._store.run(_TOP_UP, self._keys(account), args):
            case [-1, other]:
                raise Conflict(f"idempotency key {key!r} was used for {other}, not {amount}; take another key")
            case [0, _, _] if amount > 0:
                raise Overdraft(
                    f"with {amount} more the account would have got more than {AMOUNT_MAX} in all; take another account"
                )
            case [0, balance, available]:
                raise Overdraft(f"{-amount} cannot be taken: of {balance} only {available} is not reserved")
            case [done, balance]:
                return TopUp(balance, done == 2)
            case answer:
                raise AssertionError(answer)

    async def entries(self, account: str, *, limit: int = 50, before: str = "") -> list[Entry]:
        """The newest first, or those before the one whose `place` is named."""
        if before and not _PLACE.fullmatch(before):
            raise ValueError(f"{before!r} is the place of no entry; write one that an entry has")
        if limit < 1:
            raise ValueError(f"a limit of {limit} entries shows none; write 1 or more")
        answer = await self._store.run(_ENTRIES, [self._keys(account)[5]], (limit, before))
        return [_entry(place.decode(), fields) for place, fields in answer]

    async def _look(self, account: str) -> tuple[Standing, int]:
        swept, more = 0, 1
        while more:
            balance, reserved, used, granted, count, more = await self._store.run(_LOOK, self._keys(account))
            swept += count
        if granted < 0:
            return Standing(self._grant, reserved, used, self._grant, fresh=True), swept
        return Standing(balance, reserved, used, granted, fresh=False), swept

    def _keys(self, account: str) -> Sequence[str]:
        return self._names(_name(account))

    def _name_keys(self, account: str) -> Sequence[str]:
        tag = f"ledger:{self._unit}:{account}"
        parts = ("book", "open", "leases", "even", "odd", "entries", "topups")
        return tuple(self._store.key(tag, part) for part in parts)


def _amount(amount: int) -> int:
    if type(amount) is not int or not 0 <= amount <= AMOUNT_MAX:
        raise ValueError(f"{amount!r} is no amount; write an integer from 0 to {AMOUNT_MAX}")
    return amount


def _name(text: str) -> str:
    """An account's, a request's or a top-up's."""
    if not text:
        raise ValueError("accounts, requests and top-ups need a name that is not empty")
    return text


def _note(note: Mapping[str, str | int]) -> bytes | str:
    """As JSON, with what could make it long cut off; half a surrogate pair, which JSON has not, is a question mark."""
    if not note:
        return ""
    return orjson.dumps(
        {
            name: value if isinstance(value, int) else value[:_NOTE_MAX].encode("utf-8", "replace").decode()
            for name, value in note.items()
        }
    )


def _entry(place: str, fields: Sequence[Any]) -> Entry:
    kind, amount, balance, of, note = fields[1::2]
    time_s = int(place.partition("-")[0]) / 1000
    told = orjson.loads(note) if note else {}
    return Entry(place, kind.decode(), int(amount), int(balance), of.decode("utf-8", "replace"), time_s, told)
