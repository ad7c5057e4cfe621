"""What an operator may do to keys and balances. The admin API and the command line both go through here, and cannot differ.

What is refused is raised as Reject, with a message that says what to do; a store in trouble as StoreError, which
`store_trouble` puts into words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Final, NamedTuple, Protocol, runtime_checkable

import msgspec
from msgspec import Meta

from relay.audit import AuditLog, AuditPage
from relay.errors import Reject, RelayError, Unavailable
from relay.keyring import MAX_PAGE, Issued, Keyring, Page, name_taken
from relay.keys import KeyChange, KeyView, Moment, NewKey, is_readable, name_problem
from relay.ledger import AMOUNT_MAX, Conflict, Entry, Ledger, Metered, Overdraft
from relay.options import suggestion
from relay.store.port import Store, StoreError

_NO_GRANTS: Final[Mapping[str, int]] = MappingProxyType({})

Amount = Annotated[int, Meta(ge=-AMOUNT_MAX, le=AMOUNT_MAX)]


@runtime_checkable
class Named(Protocol):
    """A plugin whose configuration names keys."""

    @property
    def key_names(self) -> Collection[str]: ...


class TopUpOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Add an amount to a balance, or take it away if it is below zero; once, however often it is said with one key."""

    amount: Amount
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=128)]
    note: Annotated[str, Meta(max_length=200)] = ""

    def __post_init__(self) -> None:
        if self.amount == 0:
            raise ValueError("a top-up of 0 changes nothing; give an amount")
        if not is_readable(self.idempotency_key) or not is_readable(self.note):
            raise ValueError("an idempotency key and a note have no control characters, nor others that cannot be seen")


class TopUpView(msgspec.Struct, frozen=True, kw_only=True):
    """The balance after it. repeated: the idempotency key was known, so nothing was added."""

    name: str
    unit: str
    balance: int
    repeated: bool


class QuotaView(msgspec.Struct, frozen=True, kw_only=True):
    """How an account stands, in units. available: what is not reserved by requests under way.

    fresh: it was never used, and this is what it is going to have.
    """

    name: str
    unit: str
    balance: int
    available: int
    reserved: int
    used: int
    granted: int
    fresh: bool


class EntryView(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a balance. amount: below zero if it was taken. balance: after it. reference: of a request, or a key."""

    id: str
    at: Moment
    kind: str
    amount: int
    balance: int
    reference: str
    note: dict[str, str | int]


class EntryPage(NamedTuple):
    """Changes of a balance, the latest first. next: before which one the next page begins; None: there is none."""

    unit: str
    entries: tuple[EntryView, ...]
    next: str | None


def described(plugins: Iterable[object]) -> tuple[Collection[str], Mapping[str, int]]:
    """What an Administration has to know of the plugins: the names of the keys in the configuration, and grants by unit."""
    plugins = tuple(plugins)
    names = {name for plugin in plugins if isinstance(plugin, Named) for name in plugin.key_names}
    return names, {plugin.unit: plugin.grant for plugin in plugins if isinstance(plugin, Metered)}


class Administration:
    """See the head of this file.

    configured: the names of the keys in the configuration. grants: what an account has at its first use, by unit.
    """

    def __init__(self, store: Store, configured: Collection[str] = (), grants: Mapping[str, int] = _NO_GRANTS) -> None:
        self._configured = frozenset(configured)
        self._keyring = Keyring(store)
        self._audit = AuditLog(store)
        self._ledgers = {unit: Ledger(store, unit, grant=grant) for unit, grant in grants.items()}

    @classmethod
    def of(cls, store: Store, plugins: Iterable[object]) -> Administration:
        """That of a relay whose chain has these plugins."""
        return cls(store, *described(plugins))

    # Keys

    async def create(self, new: NewKey, who: str) -> Issued:
        if new.name in self._configured:
            raise name_taken(new.name, "the configuration")
        return await self._keyring.create(new, who)

    async def keys(self, after: str = "", limit: int = 100) -> Page:
        return await self._keyring.page(after, _limit(limit))

    async def key(self, name: str) -> KeyView:
        self._in_store(name)
        return await self._keyring.show(name)

    async def change(self, name: str, change: KeyChange, who: str) -> KeyView:
        self._in_store(name)
        return await self._keyring.change(name, change, who)

    async def rotate(self, name: str, overlap_s: int, who: str) -> Issued:
        self._in_store(name)
        return await self._keyring.rotate(name, overlap_s, who)

    async def delete(self, name: str, who: str) -> None:
        self._in_store(name)
        await self._keyring.delete(name, who)

    async def audit(self, before: str = "", limit: int = 100) -> AuditPage:
        return await self._audit.page(before, _limit(limit))

    # Balances

    @property
    def units(self) -> Sequence[str]:
        """In which balances are kept."""
        return tuple(self._ledgers)

    async def quota(self, name: str, unit: str | None = None) -> QuotaView:
        unit, ledger = self._ledger(unit)
        self._check_name(name)
        stands = await ledger.look(name)
        if stands.fresh:
            await self._check_key(name)
        return QuotaView(
            name=name,
            unit=unit,
            balance=stands.balance,
            available=stands.balance - stands.reserved,
            reserved=stands.reserved,
            used=stands.used,
            granted=stands.granted,
            fresh=stands.fresh,
        )

    async def entries(self, name: str, unit: str | None = None, before: str = "", limit: int = 100) -> EntryPage:
        unit, ledger = self._ledger(unit)
        self._check_name(name)
        try:
            found = await ledger.entries(name, limit=_limit(limit) + 1, before=before)
        except ValueError:
            raise Reject("before is the id of an entry of this account.", code="invalid_before") from None
        if not found:
            await self._check_key(name)
        entries = tuple(_entry(entry) for entry in found[:limit])
        return EntryPage(unit, entries, entries[-1].id if len(found) > limit else None)

    async def top_up(self, name: str, order: TopUpOrder, who: str, unit: str | None = None) -> TopUpView:
        """The audit log is written first: a change that is in no log there must not be."""
        unit, ledger = self._ledger(unit)
        await self._check_key(name)
        await self._audit.note(who, "quota.top_up", name, {"unit": unit, **msgspec.to_builtins(order)})
        try:
            done = await ledger.top_up(name, order.amount, key=order.idempotency_key, note=order.note)
        except Conflict:
            raise Reject(
                "This idempotency key was used for another amount; take a new one for another top-up.",
                code="idempotency_key_reused",
                status=409,
            ) from None
        except Overdraft as error:
            raise Reject(f"Nothing was changed: {error}.", code="balance_out_of_range", status=409) from None
        return TopUpView(name=name, unit=unit, balance=done.balance, repeated=done.repeated)

    def _in_store(self, name: str) -> None:
        """Raises Reject for a key that is not to be found there, and why."""
        if name in self._configured:
            raise Reject(
                f"The key {name!r} stands in the configuration, so it is changed there: edit keys of the plugin auth.",
                code="key_is_configured",
                status=409,
            )
        self._check_name(name)

    def _check_name(self, name: str) -> None:
        """Raises Reject for what can be the name of no key."""
        if name not in self._configured and (problem := name_problem(name)):
            raise Reject(f"No key has that name: {problem}.", code="key_not_found", status=404)

    async def _check_key(self, name: str) -> None:
        """An account has the name of a key. Raises Reject if no key has it, so that a slip of the pen opens none."""
        self._check_name(name)
        if name not in self._configured:
            await self._keyring.show(name)

    def _ledger(self, unit: str | None) -> tuple[str, Ledger]:
        if not self._ledgers:
            raise Reject(
                "No quota is kept here; add the plugin quota to the configuration.", code="no_quota", status=404
            )
        if unit is None:
            if len(self._ledgers) > 1:
                raise Reject(f"Say which unit: {', '.join(self._ledgers)}.", code="invalid_unit", param="unit")
            return next(iter(self._ledgers.items()))
        if unit not in self._ledgers:
            raise Reject(
                f"No quota is kept in {unit!r}; {suggestion(unit, self._ledgers)}", code="invalid_unit", param="unit"
            )
        return unit, self._ledgers[unit]


def store_trouble(error: StoreError) -> RelayError:
    """What an operator is told of a store that does not do as it was asked."""
    remedies = {
        "full": "it is out of memory, and takes nothing more until it has some",
        "readonly": "it takes no writes: it is a replica, or cannot write to its disk",
        "error": "it could not do this; its log and the relay's say why",
    }
    why = remedies.get(error.trouble, "it does not answer; see that it runs, and that store.url leads to it")
    after = "This may have been done nonetheless: look before you repeat it." if error.acted else "Nothing was done."
    return Unavailable(
        f"The store is in trouble: {why}. {after}", code="store_unavailable", headers={"Retry-After": "1"}
    )


def _limit(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise Reject(f"limit is a number from 1 to {MAX_PAGE}.", code="invalid_limit", param="limit")
    return limit


def _entry(entry: Entry) -> EntryView:
    return EntryView(
        id=entry.place,
        at=datetime.fromtimestamp(round(entry.time_s, 3), UTC),
        kind=entry.kind,
        amount=entry.amount,
        balance=entry.balance,
        reference=entry.id,
        note=entry.note,
    )
