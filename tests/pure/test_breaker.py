import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.breaker import LEAST_CALLS, MAX_OPEN_S, NO_TICKET, SPAN_S, WELL_S, Breaker


def opened(breaker: Breaker, now: float = 100.0) -> Breaker:
    """Opened by a call that is refused for good."""
    assert breaker.refused(breaker.enter(now), now)
    assert breaker.state == "open"
    return breaker


def fail(breaker: Breaker, now: float, calls: int = 1) -> list[bool]:
    tickets = [breaker.enter(now) for _ in range(calls)]
    return [breaker.failed(ticket, now) for ticket in tickets]


def answer(breaker: Breaker, now: float, calls: int = 1) -> None:
    for _ in range(calls):
        breaker.answered(breaker.enter(now), now)


def test_closed_lets_everything_through() -> None:
    breaker = Breaker()
    tickets = [breaker.enter(0.0) for _ in range(100)]
    assert NO_TICKET not in tickets
    assert {False} == {breaker.answered(ticket, 1.0) for ticket in tickets}


@pytest.mark.parametrize("streams", [1, 2, 10, 1000])
def test_black_hole(streams: int) -> None:
    """Calls that are cut off after a second each open it within five seconds, however few are under way at once."""
    breaker, now = Breaker(), 100.0
    answer(breaker, now)
    while breaker.allows(now):
        tickets = [breaker.enter(now) for _ in range(streams)]
        now += 1.0
        for ticket in tickets:
            breaker.failed(ticket, now)
    assert now <= 104.0
    if streams >= 10:
        assert now == 101.0


def test_refused_connections() -> None:
    """Failures that come at once open it a second after the last answer: a blip of less is none."""
    breaker = Breaker()
    answer(breaker, 100.0, 1000)
    assert not any(fail(breaker, 100.0 + step / 1000, 1)[0] for step in range(999))
    assert breaker.state == "closed"
    assert fail(breaker, 101.0) == [True]


def test_one_that_never_answered() -> None:
    """What was down from the start is found out at once."""
    assert fail(Breaker(), 100.0, 4) == [False, False, False, True]


@pytest.mark.parametrize("calls_per_second", [0.5, 1, 5, 20, 200])
def test_one_failure_in_a_hundred(calls_per_second: float) -> None:
    """Failures at random do not open it: 20,000 calls at any load."""
    breaker, chance, now = Breaker(), random.Random(7), 100.0
    for _ in range(20_000):
        now += chance.expovariate(calls_per_second)
        assert breaker.state == "closed"
        ticket = breaker.enter(now)
        if chance.random() < 0.01:
            breaker.failed(ticket, now)
        else:
            breaker.answered(ticket, now)


def test_half_of_the_calls() -> None:
    """One that answers every second call is no help."""
    breaker, now, calls = Breaker(), 100.0, 0
    while breaker.state == "closed":
        now += 0.1
        calls += 1
        if calls % 2:
            answer(breaker, now)
        else:
            fail(breaker, now)
    assert calls == LEAST_CALLS


def test_the_share_forgets() -> None:
    """What failed more than ten seconds ago no longer counts."""
    breaker = Breaker()
    answer(breaker, 100.5, 9)
    fail(breaker, 100.5, 10)
    answer(breaker, 100.5 + SPAN_S, 2)
    assert fail(breaker, 100.5 + SPAN_S, 2) == [False, False]
    answer(breaker, 500.0, LEAST_CALLS)
    assert not any(fail(breaker, 500.0, LEAST_CALLS - 1))
    assert fail(breaker, 500.0) == [True]


def test_open_refuses_at_once_and_then_lets_one_through() -> None:
    breaker = opened(Breaker())
    assert not breaker.allows(100.9)
    assert breaker.enter(100.9) == NO_TICKET
    assert breaker.allows(101.0)
    probe = breaker.enter(101.0)
    assert probe != NO_TICKET
    assert breaker.state == "probing"
    assert not breaker.allows(150.0)
    assert breaker.enter(150.0) == NO_TICKET


def test_the_answer_to_the_probe_closes_it() -> None:
    breaker = opened(Breaker())
    assert breaker.answered(breaker.enter(101.0), 101.2)
    assert breaker.state == "closed"
    assert breaker.enter(101.2) != NO_TICKET


def test_each_failed_probe_doubles_the_time() -> None:
    """Up to a limit that recovery can wait for."""
    breaker, now, waits = opened(Breaker()), 100.0, []
    for _ in range(6):
        before = now
        while not breaker.allows(now):
            now += 0.5
        waits.append(now - before)
        assert fail(breaker, now) == [True]
    assert waits == [1, 2, 4, 8, 10, 10]


def test_one_that_soon_fails_again_waits_longer() -> None:
    """A probe that was answered proves little; having been closed for a while does."""
    breaker = opened(Breaker())
    answer(breaker, 101.0)
    opened(breaker, 102.0)
    assert not breaker.allows(103.9)
    answer(breaker, 104.0)
    opened(breaker, 104.0 + WELL_S)
    assert breaker.allows(105.0 + WELL_S)


def test_a_probe_that_is_given_up_frees_its_place() -> None:
    breaker = opened(Breaker())
    probe = breaker.enter(101.0)
    breaker.abandoned(probe)
    assert breaker.allows(101.0)
    second = breaker.enter(101.0)
    assert not breaker.failed(probe, 101.1)
    assert breaker.answered(second, 101.1)


def test_calls_under_way_say_nothing_new() -> None:
    """Whatever became of those that were sent before it opened, it waits its time and sends one probe."""
    breaker = Breaker()
    old = [breaker.enter(99.0) for _ in range(30)]
    opened(breaker)
    for ticket in old[:10]:
        assert not breaker.answered(ticket, 100.5)
        assert not breaker.failed(ticket, 100.5)
    assert breaker.state == "open"
    probe = breaker.enter(101.0)
    for ticket in old[10:20]:
        assert not breaker.refused(ticket, 101.1)
        breaker.abandoned(ticket)
        assert not breaker.answered(ticket, 101.1)
    assert breaker.state == "probing"
    assert breaker.answered(probe, 101.2)
    assert not any(breaker.failed(ticket, 102.2) for ticket in old[20:])


def test_an_abandoned_call_is_nothing() -> None:
    """Clients that leave say nothing of the moderator."""
    breaker = Breaker()
    for _ in range(100):
        breaker.abandoned(breaker.enter(100.0))
    assert breaker.state == "closed"
    assert fail(breaker, 100.0, 3) == [False] * 3


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "answered", "failed", "refused", "abandoned"]), st.floats(0, 20), st.integers(0)
        )
    )
)
def test_it_always_comes_back(events: list[tuple[str, float, int]]) -> None:
    """Whatever happened: when all calls have ended and the longest time has passed, one is let through."""
    breaker, now, open_calls = Breaker(), 100.0, []
    for event, later, which in events:
        now += later
        if event == "enter":
            ticket = breaker.enter(now)
            if ticket != NO_TICKET:
                open_calls.append(ticket)
        elif open_calls:
            ticket = open_calls.pop(which % len(open_calls))
            if event == "abandoned":
                breaker.abandoned(ticket)
            else:
                getattr(breaker, event)(ticket, now)
    for ticket in open_calls:
        breaker.abandoned(ticket)
    assert breaker.allows(now + MAX_OPEN_S)
    breaker.answered(breaker.enter(now + MAX_OPEN_S), now + MAX_OPEN_S)
    assert breaker.state == "closed"
