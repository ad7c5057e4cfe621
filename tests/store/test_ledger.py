"""The ledger's calls, one by one, on a real server. Any order of them: `test_ledger_model`."""

import asyncio
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from relay import ledger as ledger_module
from relay.ledger import (
    AMOUNT_MAX,
    Conflict,
    Entry,
    Gone,
    Ledger,
    Overdraft,
    Refusal,
    Reservation,
    Settled,
    Standing,
    TopUp,
)
from relay.store.port import StoreError

LEASE_S = 30.0
SHORT_S = 0.02


@pytest.fixture
async def store(another):
    return await another()


@pytest.fixture
def ledger(store):
    return Ledger(store, "points", grant=1000)


@pytest.fixture
def hasty(store):
    """The same accounts, with leases that end while a test waits."""
    return Ledger(store, "points", grant=1000, lease_s=SHORT_S)


async def ended(ledger, account):
    """Wait until a lease of an account has ended, and been swept."""
    async with asyncio.timeout(10):
        while not await ledger.sweep(account):
            await asyncio.sleep(SHORT_S)


async def booked(ledger, account):
    """(kind, amount) of each entry, the oldest first; they add up to the balance."""
    entries = (await ledger.entries(account, limit=100_000))[::-1]
    balance = 0
    for entry in entries:
        balance += entry.amount
        assert balance == entry.balance
    standing = await ledger.look(account)
    assert standing.fresh or balance == standing.balance
    assert 0 <= standing.reserved <= standing.balance
    return [(entry.kind, entry.amount) for entry in entries]


async def test_look_creates_nothing(ledger, outside):
    """An account that was never used shows what it is going to be granted."""
    assert Standing(balance=1000, reserved=0, used=0, granted=1000, fresh=True) == await ledger.look("ada")
    assert 0 == await ledger.sweep("ada")
    assert [] == await ledger.entries("ada")
    assert [] == outside.keys()


async def test_the_grant_is_booked_once(ledger, store):
    """At the first use; a Ledger that would grant more does not add to it."""
    assert Reservation(10, LEASE_S) == await ledger.reserve("ada", "1", least=1, want=10)
    await Ledger(store, "points", grant=5000).reserve("ada", "2", least=1, want=10)
    assert [("grant", 1000)] == await booked(ledger, "ada")
    assert Standing(1000, 20, 0, 1000, fresh=False) == await ledger.look("ada")


async def test_a_top_up_before_the_first_use_keeps_the_grant(ledger):
    """Both are booked."""
    assert TopUp(1500, repeated=False) == await ledger.top_up("ada", 500, key="k")
    assert [("grant", 1000), ("topup", 500)] == await booked(ledger, "ada")


async def test_reserve_takes_what_there_is(ledger):
    """`want`, else what is available if that is `least`, else nothing."""
    assert Reservation(600, LEASE_S) == await ledger.reserve("ada", "1", least=10, want=600)
    assert Reservation(400, LEASE_S) == await ledger.reserve("ada", "2", least=10, want=600)
    assert Refusal(balance=1000, available=0) == await ledger.reserve("ada", "3", least=10, want=600)
    assert Reservation(0, LEASE_S) == await ledger.reserve("ada", "4", least=0, want=600)


async def test_reserve_again_reserves_nothing_more(ledger):
    """A repeat answers the same, whatever it wants."""
    for want in (100, 100, 700):
        assert Reservation(100, LEASE_S) == await ledger.reserve("ada", "1", least=10, want=want)
    assert 100 == (await ledger.look("ada")).reserved


async def test_reserve_under_a_settled_id_is_a_conflict(ledger):
    """Nobody is let in under an id that has been paid for."""
    await ledger.reserve("ada", "1", least=10, want=100)
    await ledger.settle("ada", "1", 50)
    with pytest.raises(Conflict, match="request '1' is settled already"):
        await ledger.reserve("ada", "1", least=10, want=100)
    assert Standing(950, 0, 50, 1000, fresh=False) == await ledger.look("ada")


async def test_accounts_and_units_are_apart(ledger, store):
    """No other account is touched, nor the same in another unit, whatever their names look like."""
    tokens = Ledger(store, "tokens", grant=7)
    for name in ("ada", "ada}", "a:da", "{a}da", "阿达"):
        await ledger.settle(name, "1", 100)
        assert Standing(900, 0, 100, 1000, fresh=False) == await ledger.look(name)
    assert (await tokens.look("ada")).fresh


async def test_renew_extends_as_far_as_there_is(ledger):
    """In all; and never takes back."""
    await ledger.reserve("ada", "1", least=10, want=100)
    await ledger.reserve("ada", "2", least=10, want=700)
    assert Reservation(250, LEASE_S) == await ledger.renew("ada", "1", spent=90, want=250)
    assert Reservation(300, LEASE_S) == await ledger.renew("ada", "1", spent=200, want=500)
    assert Reservation(300, LEASE_S) == await ledger.renew("ada", "1", spent=210, want=0)


async def test_renew_of_a_settled_request_is_gone(ledger):
    """It says at what it was settled."""
    await ledger.settle("ada", "1", 50)
    assert Gone(charged=50, balance=950) == await ledger.renew("ada", "1", spent=60, want=100)


async def test_renew_of_what_got_lost_reserves_anew(ledger):
    """After a failover the store knows nothing of it."""
    assert Reservation(100, LEASE_S) == await ledger.renew("ada", "1", spent=60, want=100)
    assert Settled(70, 0, 930, repeated=False) == await ledger.settle("ada", "1", 70)


async def test_settle_charges_and_frees(ledger):
    """Less than was reserved, or more as far as there is; a repeat answers the same whatever it says."""
    await ledger.reserve("ada", "1", least=10, want=100)
    await ledger.reserve("ada", "2", least=10, want=800)
    assert Settled(180, 0, 820, repeated=False) == await ledger.settle("ada", "1", 180)
    assert Settled(820, 80, 0, repeated=False) == await ledger.settle("ada", "2", 900)
    assert Settled(180, 0, 0, repeated=True) == await ledger.settle("ada", "1", 180)
    assert Settled(820, 80, 0, repeated=True) == await ledger.settle("ada", "2", 1)
    assert [("grant", 1000), ("charge", -180), ("charge", -820)] == await booked(ledger, "ada")


async def test_settle_leaves_others_their_reservation(ledger):
    """What another has reserved pays for nobody else."""
    await ledger.reserve("ada", "1", least=10, want=100)
    await ledger.reserve("ada", "2", least=10, want=800)
    assert Settled(200, 300, 800, repeated=False) == await ledger.settle("ada", "1", 500)
    assert Settled(800, 0, 0, repeated=False) == await ledger.settle("ada", "2", 800)


async def test_settle_without_a_reservation_charges(ledger):
    """As much as is available."""
    await ledger.reserve("ada", "1", least=10, want=900)
    assert Settled(100, 50, 900, repeated=False) == await ledger.settle("ada", "lost", 150)


async def test_release_charges_nothing(ledger):
    """No entry, and a repeat knows it."""
    await ledger.reserve("ada", "1", least=10, want=900)
    assert Settled(0, 0, 1000, repeated=False) == await ledger.release("ada", "1")
    assert Settled(0, 0, 1000, repeated=True) == await ledger.settle("ada", "1", 30)
    assert [("grant", 1000)] == await booked(ledger, "ada")


async def test_a_silent_request_is_charged_what_it_was_known_to_have_spent(ledger, hasty):
    """`least` at first, then what the last renewal said, up to the reservation."""
    await hasty.reserve("ada", "1", least=10, want=100)
    await ledger.reserve("bob", "1", least=10, want=100)
    await ledger.renew("bob", "1", spent=60, want=100)
    await hasty.renew("bob", "1", spent=40, want=100)
    await ledger.reserve("eve", "1", least=10, want=1000)
    await hasty.renew("eve", "1", spent=2000, want=3000)
    for name, charged in (("ada", 10), ("bob", 60), ("eve", 1000)):
        await ended(ledger, name)
        assert Standing(1000 - charged, 0, charged, 1000, fresh=False) == await ledger.look(name)
        assert [("grant", 1000), ("sweep", -charged)] == await booked(ledger, name)


@pytest.mark.parametrize(("amount", "correction"), [(10, []), (4, [6]), (0, [10]), (25, [-15])])
async def test_settle_after_a_sweep_corrects_it(ledger, hasty, amount, correction):
    """By one entry, if it is another amount; once."""
    await hasty.reserve("ada", "1", least=10, want=100)
    await ended(ledger, "ada")
    assert Settled(amount, 0, 1000 - amount, repeated=False) == await ledger.settle("ada", "1", amount)
    assert Settled(amount, 0, 1000 - amount, repeated=True) == await ledger.settle("ada", "1", 77)
    expected = [("grant", 1000), ("sweep", -10), *(("correction", each) for each in correction)]
    assert expected == await booked(ledger, "ada")


async def test_renew_after_a_sweep_opens_it_again(ledger, hasty):
    """The charge becomes a reservation again, so there is as much as was spent even if all else went to others."""
    await hasty.reserve("ada", "1", least=10, want=1000)
    await ended(ledger, "ada")
    await ledger.reserve("ada", "2", least=1, want=5000)
    assert Reservation(10, LEASE_S) == await ledger.renew("ada", "1", spent=30, want=100)
    assert Settled(10, 20, 990, repeated=False) == await ledger.settle("ada", "1", 30)
    expected = [("grant", 1000), ("sweep", -10), ("correction", 10), ("charge", -10)]
    assert expected == await booked(ledger, "ada")


async def test_reserve_after_a_sweep_opens_it_again(ledger, hasty):
    """As a renewal does; the request was admitted once."""
    await hasty.reserve("ada", "1", least=10, want=100)
    await ended(ledger, "ada")
    assert Reservation(50, LEASE_S) == await ledger.reserve("ada", "1", least=10, want=50)
    assert Standing(1000, 50, 0, 1000, fresh=False) == await ledger.look("ada")


async def test_many_ended_leases_hide_nothing(ledger, hasty):
    """More than one call sweeps: whoever needs what they hold gets it, and `look` shows all of it."""
    count = 450
    await asyncio.gather(*(hasty.reserve("ada", str(number), least=1, want=2) for number in range(count)))
    await asyncio.sleep(2 * SHORT_S)
    assert Reservation(1000 - count, LEASE_S) == await ledger.reserve("ada", "all", least=1000 - count, want=1000)
    await asyncio.gather(*(hasty.reserve("bob", str(number), least=1, want=2) for number in range(count)))
    await asyncio.sleep(2 * SHORT_S)
    assert Standing(1000 - count, 0, count, 1000, fresh=False) == await ledger.look("bob")
    assert [("grant", 1000), *[("sweep", -1)] * count] == await booked(ledger, "bob")


async def test_a_top_up_is_added_once(ledger):
    """Its idempotency key knows the amount; another amount is a conflict."""
    assert TopUp(1500, repeated=False) == await ledger.top_up("ada", 500, key="k", note="paid by card")
    await ledger.settle("ada", "1", 100)
    assert TopUp(1400, repeated=True) == await ledger.top_up("ada", 500, key="k")
    with pytest.raises(Conflict, match="idempotency key 'k' was used for 500, not 501"):
        await ledger.top_up("ada", 501, key="k")
    assert [("grant", 1000), ("topup", 500), ("charge", -100)] == await booked(ledger, "ada")
    assert {"note": "paid by card"} == (await ledger.entries("ada"))[1].note


async def test_a_top_up_below_zero_takes_only_what_is_free(ledger):
    """And never more in all than can be counted."""
    await ledger.reserve("ada", "1", least=1, want=700)
    with pytest.raises(Overdraft, match="301 cannot be taken: of 1000 only 300 is not reserved"):
        await ledger.top_up("ada", -301, key="k")
    assert TopUp(700, repeated=False) == await ledger.top_up("ada", -300, key="k")
    with pytest.raises(Overdraft, match="more than 9007199254740991 in all"):
        await ledger.top_up("ada", AMOUNT_MAX - 699, key="much")
    assert TopUp(AMOUNT_MAX, repeated=False) == await ledger.top_up("ada", AMOUNT_MAX - 700, key="most")
    assert [("grant", 1000), ("correction", -300), ("topup", AMOUNT_MAX - 700)] == await booked(ledger, "ada")


async def test_numbers_are_exact_to_the_last(store):
    """Up to 2^53 − 1, written without an exponent."""
    ledger = Ledger(store, "points", grant=AMOUNT_MAX)
    assert Reservation(AMOUNT_MAX, LEASE_S) == await ledger.reserve("ada", "1", least=AMOUNT_MAX, want=AMOUNT_MAX)
    assert Settled(AMOUNT_MAX - 1, 0, 1, repeated=False) == await ledger.settle("ada", "1", AMOUNT_MAX - 1)
    assert Standing(1, 0, AMOUNT_MAX - 1, AMOUNT_MAX, fresh=False) == await ledger.look("ada")
    assert [("grant", AMOUNT_MAX), ("charge", 1 - AMOUNT_MAX)] == await booked(ledger, "ada")


async def test_entries_say_what_happened(ledger):
    """The newest first, in pages; with the note that came with them."""
    for number in range(5):
        await ledger.settle("ada", f"request {number}", 10 + number, {"model": "m", "tokens": number, "bad": "\ud800"})
    last, *_ = await ledger.entries("ada")
    assert last == Entry(
        place=last.place,
        kind="charge",
        amount=-14,
        balance=940,
        id="request 4",
        time_s=last.time_s,
        note={"model": "m", "tokens": 4, "bad": "?"},
    )
    pages, before = [], ""
    while page := await ledger.entries("ada", limit=2, before=before):
        pages.append([entry.amount for entry in page])
        before = page[-1].place
    assert [[-14, -13], [-12, -11], [-10, 1000]] == pages


async def test_entries_are_trimmed(ledger, outside):
    """Some 10,000 stay, which still add up from one to the next, and end at the balance."""
    await ledger.top_up("ada", 1_000_000, key="k")
    for begin in range(0, 10_500, 500):
        await asyncio.gather(*(ledger.settle("ada", str(number), 1) for number in range(begin, begin + 500)))
    entries = await ledger.entries("ada", limit=100_000)
    assert 10_000 <= len(entries) <= 10_200
    assert all(newer.balance == older.balance + newer.amount for newer, older in pairwise(entries))
    assert (await ledger.look("ada")).balance == entries[0].balance == 1_001_000 - 10_500


async def test_all_keys_of_an_account_are_on_one_node(ledger, outside):
    """They share a hash tag; what is remembered of ids ends by itself, the rest does not."""
    await ledger.reserve("ada", "1", least=1, want=2)
    await ledger.settle("ada", "2", 3)
    await ledger.top_up("ada", 1, key="k")
    keys = {key.decode() for key in outside.scan_iter()}
    assert {"relay:{ledger%3Apoints%3Aada}"} == {key.rpartition(":")[0] for key in keys}
    passing = {key.rpartition(":")[2] for key in keys if outside.pttl(key) >= 0}
    assert passing in ({"even"}, {"odd"})
    assert all(24 * 3600 < outside.ttl(key) <= 48 * 3600 for key in keys if key.endswith(("even", "odd")))


async def test_a_full_store_refuses_whole_and_still_settles(ledger, place):
    """Out of memory nothing is half done: no request is admitted, those that were are charged."""
    await ledger.reserve("ada", "1", least=10, want=100)
    place.tell("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(StoreError):
            await ledger.reserve("ada", "2", least=10, want=100)
        with pytest.raises(StoreError):
            await ledger.reserve("bob", "1", least=10, want=100)
        assert Settled(40, 0, 960, repeated=False) == await ledger.settle("ada", "1", 40)
    finally:
        place.tell("CONFIG", "SET", "maxmemory", 0)
    assert Standing(960, 0, 40, 1000, fresh=False) == await ledger.look("ada")
    assert [("grant", 1000), ("charge", -40)] == await booked(ledger, "ada")
    assert (await ledger.look("bob")).fresh


async def test_as_many_are_admitted_as_there_is_balance_for(ledger, another):
    """Of 500 at once over two connections exactly those, and the balance is exact at the end."""
    each, enough = 25, 40
    ledgers = (ledger, Ledger(await another(), "points", grant=1000))
    answers = await asyncio.gather(
        *(ledgers[number % 2].reserve("ada", str(number), least=each, want=each) for number in range(500))
    )
    admitted = [number for number, answer in enumerate(answers) if isinstance(answer, Reservation)]
    assert enough == len(admitted)
    assert {Reservation(each, LEASE_S), Refusal(1000, 0)} == set(answers)
    # Each is settled over the other connection, and twice, as if an answer had got lost.
    settled = await asyncio.gather(
        *(
            ledgers[(number + turn) % 2].settle("ada", str(number), each - number % 2)
            for turn in (0, 1)
            for number in admitted
        )
    )
    assert enough == sum(answer.repeated for answer in settled)
    spent = sum(each - number % 2 for number in admitted)
    assert Standing(1000 - spent, 0, spent, 1000, fresh=False) == await ledger.look("ada")
    assert 1 + enough == len(await booked(ledger, "ada"))


@given(
    amount=st.one_of(
        st.integers(max_value=-1), st.integers(min_value=2**53), st.booleans(), st.none(), st.floats(), st.text()
    )
)
def test_what_is_no_amount_is_refused(amount):
    """Below zero, from 2^53, or no integer: before the store is asked."""
    ledger = Ledger(store=None, unit="points")
    for coroutine in (
        ledger.reserve("ada", "1", least=0, want=amount),
        ledger.renew("ada", "1", spent=amount, want=1),
        ledger.settle("ada", "1", amount),
    ):
        with pytest.raises(ValueError, match="is no amount"):
            coroutine.send(None)


def bad_calls(ledger):
    yield ledger.reserve("ada", "1", least=2, want=1), "least 2 is more than want 1"
    yield ledger.reserve("ada", "", least=1, want=1), "not empty"
    yield ledger.reserve("", "1", least=1, want=1), "not empty"
    yield ledger.top_up("ada", 0, key="k"), "a top-up of 0 changes nothing"
    yield ledger.top_up("ada", 1, key=""), "not empty"
    yield ledger.top_up("ada", -(2**53), key="k"), "is no amount"
    yield ledger.entries("ada", limit=0), "shows none"
    yield ledger.entries("ada", before="(1"), "the place of no entry"


async def test_bad_calls_say_what_to_do(ledger, outside):
    """In one sentence, before the store is asked."""
    for call, message in bad_calls(ledger):
        with pytest.raises(ValueError, match=message):
            await call
    assert [] == outside.keys()


@pytest.mark.parametrize(
    ("unit", "options", "message"),
    [
        ("a:b", {}, "'a:b' is no unit"),
        ("points", {"grant": -1}, "-1 is no amount"),
        ("points", {"lease_s": 0}, "a lease of 0 s is none"),
    ],
)
def test_bad_ledgers_say_what_to_do(unit, options, message):
    """A unit is a word, so that no account of one is taken for another's."""
    with pytest.raises(ValueError, match=message):
        Ledger(None, unit, **options)


def test_scripts_read_no_clock_but_the_servers():
    """Once each, so that all of a script is of one moment."""
    for name in ("_RESERVE", "_RENEW", "_SETTLE", "_LOOK", "_TOP_UP"):
        assert 1 == getattr(ledger_module, name).source.count("'TIME'")
