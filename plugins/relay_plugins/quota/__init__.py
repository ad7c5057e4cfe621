"""`quota`: what a key may use in all, in characters, tokens or points; nobody is given more than is left.

A request reserves what its prompt costs and a first instalment of the reply. While the reply streams more is reserved as
it is needed, and when it has ended what it took is charged and the rest given back (`relay.ledger`). So no reply is
longer than the balance, however many come at once, and a relay that dies leaves reservations that run out by themselves.

What is charged: docs/operating.md, "What a request costs".
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta

from relay.degraded import degraded
from relay.errors import NO_RETRY, Reject, RelayError, Unavailable
from relay.exchange import CALLER, Exchange, Key, Operation
from relay.failpoint import hit
from relay.journal import Journal
from relay.ledger import Ledger, Reservation
from relay.log import Logger
from relay.metrics import Metrics
from relay.plugin import Plugin, Reply, Services, Sink
from relay.pure.openai import Chunk, dump
from relay.pure.tokens import Calibration
from relay.store.port import StoreError
from relay_plugins.quota.bill import Bill
from relay_plugins.quota.meter import Meter
from relay_plugins.quota.tariff import UNBOUNDED, Price, Tariff, Unit, tariffs

Amount = Annotated[int, Meta(ge=0, le=2**50)]

# Leases are renewed so many times before they would run out.
RENEWALS: Final = 3
# More of a reply is asked for while it goes on, and an answer that was bought is not to end for a store that is late once.
EXTEND_WITHIN_S: Final = 2.0
EXTEND_AGAIN_S: Final = 0.1
# How many are renewed in one turn of the loop.
RENEWED_AT_ONCE: Final = 200


class Quota(Plugin):
    """Charges each key for what it uses, and refuses what it cannot pay for.

    unit: what is counted. grant: what a key is given the first time it is used. instalment: how much of a reply is
    reserved at a time, in units. prices: points for 1,000 tokens, by the public name of a model; "*" is for the others.
    on_store_failure: whether a request passes, to be charged later, while nobody can say what is left ("open").
    lease_s: after so long without a word a relay is taken for dead, and what it had reserved is settled.
    """

    unit: Unit = "characters"
    grant: Amount = 0
    instalment: Annotated[int, Meta(ge=1, le=10**9)] = 1000
    prices: dict[str, Price] = dataclasses.field(default_factory=dict)
    on_store_failure: Literal["closed", "open"] = "closed"
    lease_s: Annotated[float, Meta(ge=1, le=3600)] = 30.0

    guards: ClassVar[bool] = True
    needs: ClassVar[tuple[Key[Any], ...]] = (CALLER,)
    serves: ClassVar[frozenset[Operation]] = frozenset({"chat", "quota"})
    needs_store: ClassVar[bool] = True

    _tariffs: Mapping[str, Tariff] = dataclasses.field(init=False)
    _bill: Key[Bill] = dataclasses.field(init=False)
    _ledger: Ledger = dataclasses.field(init=False)
    _journal: Journal = dataclasses.field(init=False)
    _metrics: Metrics = dataclasses.field(init=False)
    _log: Logger = dataclasses.field(init=False)
    _live: set[Bill] = dataclasses.field(init=False)
    _tasks: set[asyncio.Task[None]] = dataclasses.field(init=False)
    _prompts: Calibration = dataclasses.field(init=False)
    _replies: Calibration = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self._tariffs = tariffs(self.unit, self.prices)
        self._bill = Key("quota.bill", Bill)
        self._live = set()
        self._tasks = set()
        self._prompts, self._replies = Calibration(), Calibration()

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        assert services.store is not None, "assembly refuses memory:"
        self._metrics, self._log = services.metrics, services.log
        store = services.store

        def ledger(unit: str) -> Ledger:
            return Ledger(store, unit, grant=self.grant if unit == self.unit else 0, lease_s=self.lease_s)

        self._ledger = ledger(self.unit)
        journal = Journal(services.data / "journal" / self.unit, ledger, services.log, services.metrics)
        promising = services.metrics.store.promising("reservation", lambda: len(self._live))
        async with journal as self._journal:
            renewing = asyncio.get_running_loop().create_task(self._renew())
            try:
                with promising:
                    yield
            finally:
                renewing.cancel()
                with suppress(asyncio.CancelledError):
                    await renewing
                while self._tasks:
                    await asyncio.wait(tuple(self._tasks))

    # Requests

    async def on_request(self, ex: Exchange) -> Reply | None:
        account = ex[CALLER]
        if ex.operation == "quota":
            return await self._tell(account)
        tariff = self._tariffs.get(ex.request.model) or self._tariffs["*"]
        bill = Bill(ex, account, tariff, self._prompts, self._replies)
        least = bill.with_more(1)
        want = max(least, bill.spent + self.instalment)  # one token may be dearer than an instalment
        try:
            reserved = await self._ledger.reserve(account, ex.id, least=least, want=want)
        except StoreError as error:
            if self.on_store_failure == "closed":
                if error.acted:
                    self._settle_later(bill, 0)
                raise _unavailable(acted=False) from None
            degraded(ex, self._metrics, "quota")
            bill.covered = UNBOUNDED
        except asyncio.CancelledError:
            self._spawn(self._settle(bill, 0))  # nobody else will: this plugin has not been passed
            raise
        else:
            if not isinstance(reserved, Reservation):
                raise Reject(
                    "User quota is not enough.", code="insufficient_user_quota", status=403, type="talk_api_error"
                )
            bill.covered = reserved.amount
        if tariff.unit != "characters":
            ex.needs_usage = True
        ex[self._bill] = bill
        self._live.add(bill)
        hit("before_upstream")
        return None

    async def _tell(self, account: str) -> Reply:
        try:
            standing = await self._ledger.look(account)
        except StoreError:
            raise _unavailable(acted=False) from None
        body = {
            "object": "quota",
            "unit": self.unit,
            "balance": standing.balance,
            "reserved": standing.reserved,
            "used": standing.used,
            "granted": standing.granted,
        }
        return Reply((Chunk.body(dump(body)),), headers={"Content-Type": "application/json"})

    # Replies

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        hit("after_upstream")
        bill = ex[self._bill]
        bill.weigh(ex.request)
        return Meter(ex, sink, bill, partial(self._extend, ex, bill), instalment=self.instalment)

    async def _extend(self, ex: Exchange, bill: Bill, want: int) -> RelayError | None:
        give_up_at = ex.loop.time() + EXTEND_WITHIN_S
        while True:
            try:
                extended = await self._ledger.renew(bill.account, bill.id, spent=bill.spent, want=want)
            except StoreError:
                if self.on_store_failure == "open":
                    self._metrics.degraded("quota")  # the head has left
                    bill.covered = UNBOUNDED
                    return None
                if ex.loop.time() > give_up_at:
                    return _unavailable(acted=True)
                await asyncio.sleep(EXTEND_AGAIN_S)
                continue
            if isinstance(extended, Reservation):
                bill.covered = max(bill.covered, extended.amount)
            return None

    async def on_end(self, ex: Exchange) -> None:
        if self._bill not in ex:
            return  # somebody has only looked at the balance
        bill = ex[self._bill]
        self._live.discard(bill)
        outcome = ex.outcome
        assert outcome is not None
        if ex.loaded is not None:
            bill.weigh(ex.loaded)
        amount = bill.amount(outcome, asked=ex.asked)
        # Of a reply that was cut, the usage may be one that we have made.
        if outcome.kind == "completed" and (reported := bill.reported) is not None:
            self._metrics.quota_counted("prompt", bill.prompt, reported.prompt)
            self._metrics.quota_counted("reply", bill.reply, reported.completion)
            bill.learn()
        await self._settle(bill, amount, outcome.kind)

    async def _settle(self, bill: Bill, amount: int, outcome: str = "") -> None:
        note = _note(bill, outcome)
        try:
            settled = await self._ledger.settle(bill.account, bill.id, amount, note)
        except StoreError:
            self._settle_later(bill, amount, outcome)
            return
        if not settled.repeated:
            self._metrics.quota_charged(self.unit, settled.charged, settled.short)

    def _settle_later(self, bill: Bill, amount: int, outcome: str = "") -> None:
        self._journal.put(self.unit, bill.account, bill.id, amount, _note(bill, outcome))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Leases

    async def _renew(self) -> None:
        """Renew the leases of all requests under way, until cancelled."""
        while True:
            await asyncio.sleep(self.lease_s / RENEWALS)
            live = tuple(self._live)
            for start in range(0, len(live), RENEWED_AT_ONCE):
                await asyncio.gather(*(self._renewed(bill) for bill in live[start : start + RENEWED_AT_ONCE]))

    async def _renewed(self, bill: Bill) -> None:
        try:
            await self._ledger.renew(bill.account, bill.id, spent=bill.spent, want=0)
        except StoreError:
            pass  # the next time comes before the lease runs out
        except Exception:  # noqa: BLE001 - of one request; the others' leases still have to be renewed
            self._log.exception("lease not renewed", request_id=bill.id)


def _note(bill: Bill, outcome: str) -> dict[str, str | int]:
    note: dict[str, str | int] = {"model": bill.model[:64], "prompt": round(bill.prompt)}
    if bill.count.characters:
        note["characters"] = bill.count.characters
    if outcome:
        note["outcome"] = outcome
    return note


def _unavailable(*, acted: bool) -> Unavailable:
    return Unavailable(
        "What is left of the quota cannot be looked up now; ask again in a moment.",
        code="quota_unavailable",
        headers=NO_RETRY if acted else {"Retry-After": "1"},
    )
