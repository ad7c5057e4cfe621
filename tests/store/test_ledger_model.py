"""The ledger against an exact model: any calls in any order, repeated, with answers lost and time passing.

In the model a lease that ends is charged that moment. In the store that is done later, by whichever script comes next and
two at a time here; nobody may see the difference. Time is a number that the scripts read in place of the server's clock.
"""

from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from relay.ledger import AMOUNT_MAX, REMEMBERED_S, Conflict, Gone, Ledger, Overdraft, Refusal, Reservation, Standing
from relay.store.port import StoreError, key_name

GRANT = 1000
LEASE_MS = 30_000
BEGIN_MS = 4_000_000_000_000  # the keys of a day must not end by the server's own clock, which is behind

amounts = st.one_of(st.integers(0, 400), st.sampled_from([0, 1, GRANT, AMOUNT_MAX]))
accounts = st.sampled_from(["ada", "bob", "k:{x}"])
ids = st.integers(0, 5)
fates = st.sampled_from(["answered"] * 6 + ["not sent", "answer lost"])


class Answer:
    """Awaited without a loop."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        return self.value
        yield


def result(coroutine):
    """What a coroutine returns that never waits."""
    with pytest.raises(StopIteration) as returned:
        coroutine.send(None)
    return returned.value.value


class ClockedStore:
    """A store whose time is `now_ms`. fate: what becomes of the next script."""

    def __init__(self, client):
        self.client = client
        self.now_ms = BEGIN_MS
        self.fate = "answered"
        self.scripts = {}

    def key(self, tag, *parts):
        return key_name("relay", tag, parts)

    def run(self, script, keys, args=()):
        if self.fate == "not sent":
            raise StoreError("away", acted=False)
        answer = self._run(script, keys, args)
        if self.fate == "answer lost":
            raise StoreError("slow", acted=True)
        return Answer(answer)

    def _run(self, script, keys, args):
        if script.name not in self.scripts:
            assert script.source.count("redis.call('TIME')") == script.source.count("TIME") == 1
            assert script.source.count("SWEEP = 20") == 1
            source = script.source.replace("redis.call('TIME')", "redis.call('HMGET', 'clock', 's', 'us')")
            self.scripts[script.name] = self.client.script_load(source.replace("SWEEP = 20", "SWEEP = 2"))
        return self.client.evalsha(self.scripts[script.name], len(keys), *keys, *args)

    def advance(self, ms):
        self.now_ms += ms
        self.client.hset("clock", mapping={"s": self.now_ms // 1000, "us": self.now_ms % 1000 * 1000 + 999})


@dataclass
class Account:
    """An account as the documentation has it. open: request → [amount, spent, end of lease]; closed: request → (kind, charged, short)."""

    balance: int = GRANT
    used: int = 0
    fresh: bool = True
    open: dict = field(default_factory=dict)
    closed: dict = field(default_factory=dict)
    topups: dict = field(default_factory=dict)

    @property
    def reserved(self):
        return sum(amount for amount, _, _ in self.open.values())

    @property
    def available(self):
        return self.balance - self.reserved

    @property
    def standing(self):
        return Standing(self.balance, self.reserved, self.used, GRANT, self.fresh)

    def charge(self, amount):
        self.balance -= amount
        self.used += amount

    def expire(self, now_ms):
        for request, (amount, spent, end) in list(self.open.items()):
            if end <= now_ms:
                del self.open[request]
                self.charge(min(amount, spent))
                self.closed[request] = ("swept", min(amount, spent), 0)

    def reopen(self, request):
        charged = self.closed.pop(request)[1]
        self.charge(-charged)
        self.open[request] = [charged, charged, 0]

    def extend(self, request, want, spent, now_ms):
        amount, known, _ = self.open.setdefault(request, [0, 0, 0])
        more = max(0, min(want - amount, self.available))
        self.open[request] = [amount + more, max(known, spent), now_ms + LEASE_MS]
        return Reservation(amount + more, LEASE_MS / 1000)

    def reserve(self, request, least, want, now_ms):
        if request in self.open:
            return self.extend(request, 0, 0, now_ms)
        kind = self.closed.get(request, ("new",))[0]
        if kind == "settled":
            return Conflict
        if kind == "swept":
            self.reopen(request)
        elif self.available < least:
            return Refusal(self.balance, self.available)
        return self.extend(request, want, least, now_ms)

    def renew(self, request, spent, want, now_ms):
        kind, charged, _ = self.closed.get(request, ("new", 0, 0))
        if kind == "settled":
            return Gone(charged, self.balance)
        if kind == "swept":
            self.reopen(request)
        return self.extend(request, want, spent, now_ms)

    def settle(self, request, amount):
        """charged, short, repeated"""
        kind, charged, short = self.closed.get(request, ("new", 0, 0))
        if kind == "settled":
            return charged, short, True
        self.open.pop(request, None)
        self.charge(-charged)
        charged = min(amount, self.available)
        self.charge(charged)
        self.closed[request] = ("settled", charged, amount - charged)
        return charged, amount - charged, False

    def top_up(self, key, amount):
        """repeated, or what is raised"""
        if key in self.topups:
            return True if self.topups[key] == amount else Conflict
        if self.available + min(amount, 0) < 0 or self.balance + self.used + amount > AMOUNT_MAX:
            return Overdraft
        self.topups[key] = amount
        self.balance += amount
        return False


class LedgerMachine(RuleBasedStateMachine):
    steps = 0

    def __init__(self, client):
        super().__init__()
        client.flushall()
        self.client = client
        self.store = ClockedStore(client)
        self.store.advance(0)
        self.ledger = Ledger(self.store, "points", grant=GRANT, lease_s=LEASE_MS / 1000)
        self.model = {}
        self.generation = 0  # of ids: who is older than what the ledger remembers must not come again
        self.born_ms = BEGIN_MS

    def account(self, name):
        return self.model.setdefault(name, Account())

    def name(self, request):
        if self.store.now_ms - self.born_ms > REMEMBERED_S * 1000:
            self.generation, self.born_ms = self.generation + 1, self.store.now_ms
        return f"{request}/{self.generation}"

    def call(self, fate, coroutine):
        """The answer, or the error's class; None if the store did not answer."""
        type(self).steps += 1
        self.store.fate = fate
        try:
            return result(coroutine)
        except StoreError:
            return None
        except (Conflict, Overdraft) as error:
            return type(error)
        finally:
            self.store.fate = "answered"

    def expected(self, fate, name, change):
        """What the model answers, if the store has heard it. A call that is heard is a first use, but one that looks."""
        if fate == "not sent":
            return None
        account = self.account(name)
        answer = change(account)
        account.fresh = False
        return None if fate == "answer lost" else answer

    @rule(fate=fates, name=accounts, request=ids, least=amounts, more=amounts)
    def reserve(self, fate, name, request, least, more):
        request, want = self.name(request), min(least + more, AMOUNT_MAX)
        expected = self.expected(fate, name, lambda it: it.reserve(request, least, want, self.store.now_ms))
        assert expected == self.call(fate, self.ledger.reserve(name, request, least=least, want=want))

    @rule(fate=fates, name=accounts, request=ids, spent=amounts, want=amounts)
    def renew(self, fate, name, request, spent, want):
        request = self.name(request)
        expected = self.expected(fate, name, lambda it: it.renew(request, spent, want, self.store.now_ms))
        answer = self.call(fate, self.ledger.renew(name, request, spent=spent, want=want))
        if isinstance(expected, Gone):  # its balance may lack sweeps
            assert isinstance(answer, Gone)
            assert (expected.charged, True) == (answer.charged, expected.balance <= answer.balance)
        else:
            assert expected == answer

    @rule(fate=fates, name=accounts, request=ids, amount=amounts)
    def settle(self, fate, name, request, amount):
        request = self.name(request)
        expected = self.expected(fate, name, lambda it: it.settle(request, amount))
        answer = self.call(fate, self.ledger.settle(name, request, amount, {"amount": amount}))
        if expected is None:
            assert answer is None
        else:
            assert expected == (answer.charged, answer.short, answer.repeated)
            assert self.account(name).balance <= answer.balance

    @rule(fate=fates, name=accounts, request=ids)
    def release(self, fate, name, request):
        request = self.name(request)
        expected = self.expected(fate, name, lambda it: it.settle(request, 0))
        answer = self.call(fate, self.ledger.release(name, request))
        assert expected == (answer and (answer.charged, answer.short, answer.repeated))

    @rule(
        fate=fates,
        name=accounts,
        key=st.integers(0, 30),
        amount=st.one_of(st.integers(-400, 400), amounts).filter(bool),
    )
    def top_up(self, fate, name, key, amount):
        expected = self.expected(fate, name, lambda it: it.top_up(str(key), amount))
        answer = self.call(fate, self.ledger.top_up(name, amount, key=str(key)))
        assert expected == getattr(answer, "repeated", answer)

    @rule(name=accounts)
    def look(self, name):
        assert self.account(name).standing == self.call("answered", self.ledger.look(name))

    @rule(name=accounts)
    def sweep(self, name):
        assert self.call("answered", self.ledger.sweep(name)) <= len(self.account(name).closed)
        assert self.call("answered", self.ledger.sweep(name)) == 0

    @rule(ms=st.integers(1, LEASE_MS))
    def wait(self, ms):
        self.pass_time(ms)

    @rule(ms=st.integers(LEASE_MS, 13 * 3600 * 1000))
    def wait_long(self, ms):
        self.pass_time(ms)

    @rule(name=accounts, first=ids, want=st.integers(1, GRANT // 4))
    def relay_dies(self, name, first, want):
        """Four requests are admitted, and nothing more is heard of them."""
        for request in range(first, first + 4):
            self.reserve("answered", name, request % 6, 1, want)
        self.pass_time(LEASE_MS)

    @rule(name=accounts, before=st.sampled_from([0, 0, 1]))
    def wait_for_a_lease(self, name, before):
        """To the very end of one, or a millisecond before it."""
        ends = [end for _, _, end in self.account(name).open.values()]
        if ends:
            self.pass_time(max(0, min(ends) - before - self.store.now_ms))

    def pass_time(self, ms):
        type(self).steps += 1
        self.store.advance(ms)
        for account in self.model.values():
            account.expire(self.store.now_ms)

    @invariant()
    def the_books_are_exact(self):
        """What is stored, with the leases that have ended charged, is what the model says; and it adds up by itself."""
        for name, account in self.model.items():
            book, open_, leases, entries = self.stored(name)
            assert leases.keys() == open_.keys()
            assert book["reserved"] == sum(amount for amount, _ in open_.values())
            assert book["balance"] >= book["reserved"] >= 0
            ended = {request: min(open_[request]) for request, end in leases.items() if end <= self.store.now_ms}
            assert account.fresh is ("granted" not in book)
            if not account.fresh:
                assert account.balance == book["balance"] - sum(ended.values())
                assert account.used == book["used"] + sum(ended.values())
            assert account.open.keys() == open_.keys() - ended.keys()
            assert all(account.open[request] == [*open_[request], leases[request]] for request in account.open)

            balance, by_id = 0, {}
            for kind, amount, after, request in entries:
                balance += amount
                assert (balance, True) == (after, amount != 0)
                if kind != "topup" and request.find("/") > 0:
                    by_id[request] = by_id.get(request, 0) - amount
            assert book["balance"] == balance
            charged = {request: charged for request, (_, charged, _) in account.closed.items()}
            assert {request: by_id.get(request, 0) + ended.get(request, 0) for request in charged} == charged

    def stored(self, name):
        pipe = self.client.pipeline(transaction=False)
        keys = [self.store.key(f"ledger:points:{name}", part) for part in ("book", "open", "leases", "entries")]
        pipe.hgetall(keys[0]).hgetall(keys[1]).zrange(keys[2], 0, -1, withscores=True).xrange(keys[3])
        book, open_, leases, entries = pipe.execute()
        return (
            {"balance": 0, "reserved": 0, **{name.decode(): int(value) for name, value in book.items()}},
            {request.decode(): [int(number) for number in held.split()] for request, held in open_.items()},
            {request.decode(): int(end) for request, end in leases},
            [
                (entry[b"kind"].decode(), int(entry[b"amount"]), int(entry[b"balance"]), entry[b"id"].decode())
                for _, entry in entries
            ],
        )


@pytest.fixture
def client(server):
    with redis.Redis(unix_socket_path=server) as opened:
        yield opened


def test_any_history(client):
    """Whatever is called, repeated, lost and waited for: the ledger does what the model does."""
    short = settings(max_examples=50, stateful_step_count=50, deadline=None)
    run_state_machine_as_test(lambda: LedgerMachine(client), settings=short)


@pytest.mark.long
def test_any_history_for_long(client):
    """The same for 100,000 steps at least."""
    LedgerMachine.steps = 0
    long = settings(
        max_examples=1800, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(lambda: LedgerMachine(client), settings=long)
    print(f"{LedgerMachine.steps:,} steps")
    assert LedgerMachine.steps >= 100_000
