"""The plugin `quota` between the ledger and a request: what it says while the store is away, and what it settles then."""

import asyncio
from types import SimpleNamespace

import pytest

from relay.errors import Reject, Unavailable
from relay.exchange import CALLER, Outcome
from relay.ledger import Refusal, Reservation, Settled
from relay.pure.openai import Chunk
from relay.store.port import StoreError
from relay.testing.reply import Kept, Lent, exchange
from relay_plugins import quota
from relay_plugins.quota import Quota

PROMPT = 2  # characters of `exchange`


class Books:
    """A ledger that says what it was told. trouble: what the next calls raise. balance: of everybody.

    settled: what was charged by id, once. renewed: what was said to be spent. slow: set, and reserving waits for it.
    """

    def __init__(self):
        self.trouble = None
        self.balance = 1000
        self.settled = {}
        self.renewed = []
        self.slow = None
        self.news = asyncio.Event()

    async def reserve(self, account, id, *, least, want):
        if self.slow is not None:
            await self.slow.wait()
        self._say()
        return (
            Reservation(min(want, self.balance), 30) if least <= self.balance else Refusal(self.balance, self.balance)
        )

    async def renew(self, account, id, *, spent, want):
        self.renewed.append(spent)
        self.news.set()
        self._say()
        return Reservation(min(want, self.balance), 30)

    async def settle(self, account, id, amount, note):
        self._say()
        repeated = id in self.settled
        self.settled.setdefault(id, amount)
        self.news.set()
        return Settled(amount, 0, self.balance, repeated)

    def _say(self):
        if self.trouble is not None:
            raise self.trouble


@pytest.fixture
async def rig(tmp_path, monkeypatch):
    """`plugin = await rig.start(**options)`; `rig.books` is what it settles with."""
    rig = SimpleNamespace(books=Books(), lent=Lent(tmp_path, store=object()), open=[])
    monkeypatch.setattr(quota, "Ledger", lambda *_, **__: rig.books)

    async def start(**options):
        plugin = Quota(**{"instalment": 50, **options})
        life = plugin.lifespan(rig.lent.services)
        await life.__aenter__()
        rig.open.append(life)
        return plugin

    async def stop():
        while rig.open:
            await rig.open.pop().__aexit__(None, None, None)

    rig.start, rig.stop = start, stop
    yield rig
    await stop()


def asking(**changed):
    ex = exchange(**changed)
    ex[CALLER] = "shop"
    return ex


async def ends(plugin, ex, kind="completed", error=None, *, asked=True):
    ex.asked, ex.outcome = asked, Outcome(kind, error)
    await plugin.on_end(ex)


def event(text):
    return Chunk.event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


@pytest.mark.parametrize("acted", [False, True])
async def test_store_away(rig, acted):
    """Nobody passes; what may have been reserved all the same is given back when the store is there again."""
    plugin, ex = await rig.start(), asking()
    rig.books.trouble = StoreError("slow", acted=acted)
    with pytest.raises(Unavailable) as caught:
        await plugin.on_request(ex)
    assert (caught.value.status, caught.value.code) == (503, "quota_unavailable")
    assert caught.value.headers == {"Retry-After": "1"}
    rig.books.trouble = None
    await rig.stop()
    assert rig.books.settled == ({ex.id: 0} if acted else {})


async def test_store_away_and_open(rig):
    """It passes unbounded and says so, and is charged when the store is back."""
    plugin, ex = await rig.start(on_store_failure="open"), asking()
    rig.books.trouble = StoreError("away", acted=False)
    assert await plugin.on_request(ex) is None
    assert ex.reply_headers["x-relay-degraded"] == "quota"
    kept = Kept()
    sink = plugin.on_stream(ex, kept)
    sink.feed(event("x" * 5000))
    assert len(kept.text) == 5000
    await ends(plugin, ex)
    assert rig.books.settled == {}
    assert await rig.lent.count('relay_degraded_requests_total{concern="quota"}') == 1
    rig.books.trouble = None
    await rig.stop()
    assert rig.books.settled == {ex.id: PROMPT + 5000}


async def test_store_goes_away_while_it_streams(rig):
    """Open: what was let in goes on. What it comes to is journalled, and brought."""
    plugin, ex = await rig.start(on_store_failure="open"), asking()
    await plugin.on_request(ex)
    rig.books.trouble = StoreError("away", acted=False)
    kept = Kept()
    sink = plugin.on_stream(ex, kept)
    sink.feed(event("x" * 200))
    assert kept.text == ""
    while not kept.text:
        await asyncio.sleep(0)
    sink.feed(event("y" * 200))
    assert len(kept.text) == 400
    await ends(plugin, ex)
    rig.books.trouble = None
    await rig.stop()
    assert rig.books.settled == {ex.id: PROMPT + 400}
    await ex.close()


async def test_client_leaves_while_it_is_reserved(rig):
    """This plugin has not been passed, so nobody else would give back what was reserved."""
    plugin, ex = await rig.start(), asking()
    rig.books.slow = asyncio.Event()
    asked = asyncio.create_task(plugin.on_request(ex))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await rig.stop()
    assert rig.books.settled == {ex.id: 0}


async def test_too_little(rig):
    """As the page of the first API says it; one character of a reply has to be there beside the prompt."""
    plugin = await rig.start()
    rig.books.balance = PROMPT
    with pytest.raises(Reject) as caught:
        await plugin.on_request(asking())
    assert (caught.value.status, caught.value.code) == (403, "insufficient_user_quota")
    rig.books.balance = PROMPT + 1
    assert await plugin.on_request(asking()) is None


async def test_refused_by_a_later_plugin(rig):
    plugin, ex = await rig.start(), asking()
    await plugin.on_request(ex)
    await ends(plugin, ex, "refused", Reject("no", code="content_filter"), asked=False)
    assert rig.books.settled == {ex.id: 0}


@pytest.mark.parametrize("fault", [StoreError("away", acted=True), ZeroDivisionError()])
async def test_leases_are_renewed(rig, fault):
    """With what is spent so far, as long as the request lives, whatever came of the last time."""
    plugin, ex = await rig.start(lease_s=0.03), asking()
    await plugin.on_request(ex)
    plugin.on_stream(ex, Kept()).feed(event("four"))
    rig.books.trouble = fault
    async with asyncio.timeout(10):
        while len(rig.books.renewed) < 3:
            rig.books.news.clear()
            await rig.books.news.wait()
    rig.books.trouble = None
    assert set(rig.books.renewed) == {PROMPT + 4}
    await ends(plugin, ex)
    assert rig.books.settled == {ex.id: PROMPT + 4}
    assert plugin._live == set()


async def test_only_an_upstreams_count_teaches(rig):
    """The usage of a reply that was cut is the relay's own: neither compared nor learnt from."""
    plugin = await rig.start(unit="tokens")
    usage = {"prompt_tokens": 1000, "completion_tokens": 5000}
    for kind in ("filtered", "completed"):
        ex = asking(messages=[{"role": "user", "content": "word " * 500}])
        await plugin.on_request(ex)
        sink = plugin.on_stream(ex, Kept())
        sink.feed(event("word "))
        sink.feed(Chunk.event({"choices": [], "usage": usage}))
        await ends(plugin, ex, kind)
        learnt = plugin._prompts.factor("gpt-4")
        assert (learnt == 1) is (kind == "filtered")
    assert await rig.lent.count('relay_quota_tokens_total{counted_by="upstream",direction="prompt"}') == 1000
