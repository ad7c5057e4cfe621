"""Limits in a real store, step by step against an exact model: answers get lost, processes die, clocks are wrong.

Every script that runs is compared with a model in fractions, whatever asked for it to run. The server's clock is one that
the test sets: `TIME` in the scripts becomes a look at a key. It stands in the year 2096, so nothing expires meanwhile.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay import limits
from relay.limits import LEASE_US, MINUTE_US, Admission, Limiter, Rates, Scope, Share
from relay.store.port import Script, StoreError, key_name

NOON = 4_000_000_000_000_000
SLOT_US = 5_000_000
KEPT = 12


class Model:
    """One scope, as it should be. Times in µs, shares of a request in fractions."""

    def __init__(self) -> None:
        self.leases: dict[str, int] = {}
        self.tat = Fraction(0)  # the theoretical arrival time of GCRA: I.371's virtual scheduling
        self.seen_at = 0  # when the TAT was written
        self.taken: tuple[dict[int, int], dict[int, int]] = ({}, {})

    def take(self, now: int, id: str, lease: int, most: int, rate: int, burst: int, *shares: int) -> list[Any]:
        self.leases = {other: ends for other, ends in self.leases.items() if now < ends <= now + 2 * lease}
        if rate and now < self.seen_at:
            self.tat += now - self.seen_at
            self.seen_at = now
        windows = [self._window(*each, now) for each in zip(self.taken, shares[::2], shares[1::2], strict=True)]
        interval = Fraction(MINUTE_US, rate) if rate else Fraction(0)
        refused, at = 0, now
        if id in self.leases:
            at = self.leases[id] - lease
        elif most and len(self.leases) >= most:
            refused = 1
        elif rate and now < self.tat - (burst - 1) * interval:
            refused = 2
        elif windows[0][1]:
            refused = 3
        elif windows[1][1]:
            refused = 4
        else:
            self.leases[id] = now + lease
            if rate:
                self.tat, self.seen_at = max(self.tat, Fraction(now)) + interval, now
            for taken, limit, share in zip(self.taken, shares[::2], shares[1::2], strict=True):
                if limit:
                    for slot in [slot for slot in taken if abs(slot - now // SLOT_US) > KEPT]:
                        del taken[slot]
                    self._add(taken, now, share)
            windows = [self._window(taken, limit, 0, now) for taken, limit in zip(self.taken, shares[::2], strict=True)]
        return [
            *(refused, at, len(self.leases)),
            max(Fraction(0), self.tat - now) * rate if rate else 0,
            *windows[0],
            *windows[1],
        ]

    def end(self, now: int, id: str, at: int, *shares: int) -> int:
        if self.leases.pop(id, None) is None:
            return 0
        for taken, took, used in zip(self.taken, shares[::2], shares[1::2], strict=True):
            self._add(taken, now, used - took)
            self._give_back(taken, at, took - used)
        return 1

    def undo(self, now: int, id: str, lease: int, rate: int, *shares: int) -> int:
        ends = self.leases.pop(id, None)
        if ends is None:
            return 0
        at = ends - lease
        if rate and self.seen_at:
            if now < self.seen_at:
                self.tat += now - self.seen_at
            back = max(Fraction(0), Fraction(MINUTE_US, rate) - max(0, now - at))
            self.tat, self.seen_at = max(Fraction(now), max(self.tat, Fraction(now)) - back), now
        for taken, took in zip(self.taken, shares, strict=True):
            self._give_back(taken, at, took)
        return 1

    def renew(self, now: int, lease: int, *ids: str) -> int:
        new = len(set(ids) - self.leases.keys())
        self.leases.update(dict.fromkeys(ids, now + lease))
        return new

    def _window(self, taken: dict[int, int], limit: int, share: int, now: int) -> list[int]:
        """How much, how long until the share fits, how long until nothing is left: found by going on until it is so."""
        counts = {slot: amount for slot, amount in taken.items() if abs(slot - now // SLOT_US) <= KEPT and amount}
        if not limit or not counts:
            return [0, 0, 0]
        free = sorted((slot + KEPT + 1) * SLOT_US - now for slot in counts)

        def left(later: int) -> int:
            return sum(amount for slot, amount in counts.items() if (now + later) // SLOT_US <= slot + KEPT)

        return [left(0), next(later for later in [0, *free] if left(later) + share <= limit), free[-1]]

    def _add(self, taken: dict[int, int], now: int, amount: int) -> None:
        if amount > 0:
            taken[now // SLOT_US] = taken.get(now // SLOT_US, 0) + amount

    def _give_back(self, taken: dict[int, int], at: int, amount: int) -> None:
        if amount > 0 and at // SLOT_US in taken:
            taken[at // SLOT_US] -= min(taken[at // SLOT_US], amount)


class Timed(Script):
    """A script of the product, whose clock the test sets."""

    def __init__(self, script: Script) -> None:
        self.name = script.name
        self.source = script.source.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)")
        assert self.source != script.source
        self.sha = hashlib.sha1(self.source.encode()).hexdigest()


TIMED = {script.name: Timed(script) for script in (limits.TAKE, limits.END, limits.UNDO, limits.RENEW)}


class CheckedStore:
    """The port over a real server, which loses what it is told to, and holds every answer against the model."""

    def __init__(self, client: redis.Redis, loop: asyncio.AbstractEventLoop) -> None:
        self.client = client
        self.loop = loop
        self.now = NOON
        self.was_set_back = False
        self.models: dict[str, Model] = {}
        self.faults: Iterator[str] = iter(())  # of the scripts to come: "" none, "before" it runs, "after" that
        self.ran = 0

    def key(self, tag: str, *parts: str) -> str:
        return key_name("relay", tag, parts)

    def set_clock(self, now: int) -> None:
        self.was_set_back |= now < self.now
        self.now = now
        with self.client.pipeline() as pipe:
            pipe.delete("clock")
            pipe.rpush("clock", now // 1_000_000, now % 1_000_000)
            pipe.execute()

    def run(self, script: Script, keys: Any, args: Any = ()) -> asyncio.Future[Any]:
        future = self.loop.create_future()
        fault = next(self.faults, "")
        if fault != "before":
            answer = self.act(script, keys, args)
        if fault:
            future.set_exception(StoreError("slow" if fault == "after" else "away", acted=fault == "after"))
        else:
            future.set_result(answer)
        return future

    def act(self, script: Script, keys: Any, args: Any) -> Any:
        self.ran += 1
        answer = self.client.evalsha(TIMED[script.name].sha, len(keys), *keys, *args)
        model = self.models.setdefault(keys[0], Model())
        expected = getattr(model, script.name.removeprefix("limits_"))(self.now, *args)
        assert expected == answer, (script, args)
        self.check_kept(keys[0], model)
        return answer

    def check_kept(self, key: str, model: Model) -> None:
        """What is kept is what should be, for as long as it counts: keys expire no sooner."""
        kept = {name.decode(): int(score) for name, score in self.client.zrange(key, 0, -1, withscores=True)}
        assert model.leases == kept
        until_ms = self.client.pexpiretime(key)
        if kept and not self.was_set_back:
            assert until_ms * 1000 >= max(kept.values())
        for name, taken in zip(("tokens", "characters"), model.taken, strict=True):
            window = key.removesuffix("open") + name
            counted = {int(slot): int(amount) for slot, amount in self.client.hgetall(window).items()}
            assert taken == counted
            counts = [slot for slot in taken if slot >= self.now // SLOT_US - KEPT]
            if counts and not self.was_set_back:
                assert self.client.pexpiretime(window) * 1000 >= (max(counts) + KEPT + 1) * SLOT_US
        requests = key.removesuffix("open") + "requests"
        if self.client.exists(requests):
            assert self.client.pexpiretime(requests) * 1000 >= model.tat


limit = st.none() | st.sampled_from([1, 2, 3, 7, 60, 600, 100_000, 99_999_989, limits.MAX]) | st.integers(1, limits.MAX)
few = st.none() | st.integers(1, 4)
rates = st.builds(Rates, limit, few | limit, limit, limit, few)
amounts = st.integers(0, 5) | st.sampled_from([59, 1000, 10**7, limits.MAX])
faults = st.lists(st.sampled_from(["", "", "", "before", "after"]), max_size=8)
elapsed = st.sampled_from([0, 0, 1, 999, 100_000, 1_000_000, 4_999_999, SLOT_US, 20_000_000, LEASE_US, 65_000_000]) | (
    st.integers(0, 200_000_000)
)


class Limiting(RuleBasedStateMachine):
    """Two processes, whose clocks are wrong, and one store. server: its socket."""

    server = ""
    steps = 0

    @initialize(keys=st.lists(rates, min_size=2, max_size=2), model=rates, total=rates)
    def start(self, keys: list[Rates], model: Rates, total: Rates) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = redis.Redis(unix_socket_path=self.server)
        self.client.flushdb()
        for script in TIMED.values():
            self.client.script_load(script.source)
        self.store = CheckedStore(self.client, self.loop)
        self.store.set_clock(NOON)
        self.limiters = [Limiter("test", self.store, lambda: 2) for _ in range(2)]
        self.keys = [Scope("key", name, rates) for name, rates in zip("ab", keys, strict=True)]
        self.others = [Scope("model", "gpt-4", model), Scope("all", "", total)]
        self.open: list[tuple[Limiter, Admission]] = []
        self.asked: list[tuple[str, list[Scope], Share]] = []
        self.count = 0

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            self._end_all()
        finally:
            Limiting.steps += self.store.ran
            self.client.close()
            self.loop.close()

    def _end_all(self) -> None:
        """When all have ended, and three minutes later, all is as in the beginning."""
        self.store.faults = iter(())
        for limiter, admission in self.open:
            limiter.end(admission, None, 0.0)
        self._turn()
        for limiter in self.limiters:
            assert not limiter._leased
            assert not limiter._sent
            assert not any(caller.in_flight for caller in limiter.here._callers.values())
        self.store.set_clock(max(self.store.now, NOON + 10**10) + 180_000_000)
        for scope in (*self.keys, *self.others):
            admission = self._run(self.limiters[0].admit("last" + scope.name, [scope], Share(1, 1), 0.0))
            assert admission.refused is None
            assert not admission.degraded
            for name, decision in admission.standings[0].decisions.items():
                assert decision.limit - 1 == decision.remaining, name

    def _run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def _turn(self) -> None:
        self._run(asyncio.sleep(0))
        self._run(asyncio.sleep(0))

    # What may happen

    @rule(us=elapsed)
    def time_passes(self, us: int) -> None:
        self.store.set_clock(self.store.now + us)

    @rule(us=st.sampled_from([1, 10**6, SLOT_US, 10**8, 4 * 10**9]))
    def clock_is_set_back(self, us: int) -> None:
        self.store.set_clock(max(NOON, self.store.now - us))

    @rule(
        process=st.integers(0, 1),
        key=st.integers(0, 1),
        others=st.lists(st.booleans(), min_size=2, max_size=2),
        share=st.builds(Share, amounts, amounts),
        clock=st.floats(0, 1e9),
        faults=faults,
    )
    def ask(self, process: int, key: int, others: list[bool], share: Share, clock: float, faults: list[str]) -> None:
        """Let in if all let it in, refused with what it took given back, or decided here if an answer got lost."""
        limiter, name = self.limiters[process], f"request-{self.count}"
        self.count += 1
        scopes = [self.keys[key], *(scope for scope, there in zip(self.others, others, strict=True) if there)]
        self.store.faults = iter(faults)
        admission = self._run(limiter.admit(name, scopes, share, clock))
        self._turn()
        lost = any(faults[: len(scopes)])
        assert not (admission.degraded and not lost)
        assert not (lost and admission.refused is None and not admission.degraded)
        if admission.refused is None:
            self.open.append((limiter, admission))
        held = [name in self._model(scope).leases for scope in scopes]
        if admission.refused is None and not admission.degraded:
            assert all(held)
            self.asked.append((name, scopes, share))
        elif not any(faults[len(scopes) :]):
            assert not any(held)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def a_script_is_repeated(self, data: st.DataObject) -> None:
        """Its id has a lease, or had one: then it is a new request."""
        name, scopes, share = data.draw(st.sampled_from(self.asked))
        for scope in scopes:
            model = self._model(scope)
            leased = self.store.now < model.leases.get(name, 0) <= self.store.now + 2 * LEASE_US
            before = (model.tat, model.taken[0].copy(), model.taken[1].copy(), model.seen_at)
            answer = self.store.act(limits.TAKE, self._keys(scope), (name, *limits._arguments(scope.rates, share)))
            if leased:
                assert 0 == answer[0]
                assert (before[1], before[2]) == model.taken
                assert (before[0] - before[3], before[3]) == (model.tat - model.seen_at, before[3])
            elif 0 == answer[0]:
                self.store.act(
                    limits.UNDO,
                    self._keys(scope),
                    (name, LEASE_US, scope.rates.requests or 0, *share.within(scope.rates)),
                )

    @precondition(lambda self: self.open)
    @rule(data=st.data(), used=st.none() | st.builds(Share, amounts, amounts), faults=faults, repeated=st.booleans())
    def end(self, data: st.DataObject, used: Share | None, faults: list[str], repeated: bool) -> None:
        limiter, admission = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.store.faults = iter(faults)
        limiter.end(admission, used, data.draw(st.floats(0, 1e9)))
        self._turn()
        if admission.taken_at is not None and repeated:
            for scope in admission.scopes:
                if admission.id not in self._model(scope).leases:
                    keys = self._keys(scope)
                    assert 0 == self.store.act(limits.END, (keys[0], *keys[2:]), (admission.id, NOON, 3, 1, 1, 3))

    @rule(key=st.integers(0, 1), share=st.builds(Share, amounts, amounts), us=elapsed, repeated=st.booleans())
    def it_is_given_back_late(self, key: int, share: Share, us: int, repeated: bool) -> None:
        """Nobody gains by that."""
        scope, name = self.keys[key], f"late-{self.count}"
        self.count += 1
        self.store.act(limits.TAKE, self._keys(scope), (name, *limits._arguments(scope.rates, share)))
        self.store.set_clock(self.store.now + us)
        for _ in range(1 + repeated):
            took = share.within(scope.rates)
            self.store.act(limits.UNDO, self._keys(scope), (name, LEASE_US, scope.rates.requests or 0, *took))

    @rule(process=st.integers(0, 1))
    def its_leases_run_out(self, process: int) -> None:
        """They are swept by the next one who asks, and come back with the next renewal."""
        self.store.set_clock(self.store.now + LEASE_US)
        for scope in (*self.keys, *self.others):
            arguments = limits._arguments(Rates(open=1), Share())
            self.store.act(limits.TAKE, self._keys(scope), ("sweeper", *arguments))
            self.store.act(limits.UNDO, self._keys(scope), ("sweeper", LEASE_US, 0, 0, 0))
        self._run(self.limiters[process].renew(self.store))

    @rule(process=st.integers(0, 1), faults=faults)
    def renew(self, process: int, faults: list[str]) -> None:
        self.store.faults = iter(faults)
        self._run(self.limiters[process].renew(self.store))

    @rule(process=st.integers(0, 1))
    def a_process_dies(self, process: int) -> None:
        """What it had open stays until the leases end."""
        dead = self.limiters[process]
        self.open = [(limiter, admission) for limiter, admission in self.open if limiter is not dead]
        self.limiters[process] = Limiter("test", self.store, lambda: 2)

    @invariant()
    def no_more_than_may_be(self) -> None:
        """A process counts what it has open."""
        for limiter in getattr(self, "limiters", ()):
            for scope in (*self.keys, *self.others):
                here = [
                    admission.id for other, admission in self.open if other is limiter and scope in admission.scopes
                ]
                assert len(here) == limiter.here.in_flight(scope.kind, scope.name)

    def _keys(self, scope: Scope) -> Any:
        return self.limiters[0]._keys(scope.kind, scope.name)

    def _model(self, scope: Scope) -> Model:
        return self.store.models.setdefault(self._keys(scope)[0], Model())


def run_machine(server: str, examples: int, steps: int) -> int:
    """How many scripts ran."""

    class Machine(Limiting):
        pass

    Machine.server, Limiting.steps = server, 0
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    return Limiting.steps


def test_against_the_model(server: str) -> None:
    """Thousands of steps."""
    assert run_machine(server, 120, 50) > 2_000


@pytest.mark.long
def test_against_the_model_for_long(server: str) -> None:
    """A hundred thousand."""
    assert run_machine(server, 2_000, 80) > 100_000
