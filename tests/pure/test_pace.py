import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.pace import FALL, JITTER_S, LEAST_SHARE, RECOVERY_S, Pace

RATES = st.one_of(st.integers(1, 2000).map(float), st.floats(0.1, 3000))
GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 0.05), st.floats(0, 3)), min_size=1, max_size=200)


def most_in_a_second(sent: list[float], seconds: float = 1.0) -> int:
    """The greatest number of `sent` in any half-open span of so many seconds."""
    most = first = 0
    for last, time in enumerate(sent):
        while time - sent[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def greedy(pace: Pace, seconds: float, now: float = 0.0) -> list[float]:
    """When calls are sent by one who always wants to."""
    sent, end = [], now + seconds
    while now < end:
        if pace.take(now):
            sent.append(now)
        else:
            now = pace.due(now)
    return sent


@given(RATES)
def test_greed(calls: float) -> None:
    """Who always wants gets nearly all of his rate, and never more in any second, even if it is a little short."""
    sent = greedy(Pace(calls, 0.0), 10.0)
    allowed = max(1, math.floor(calls))
    assert most_in_a_second(sent, 1 + 0.99 * JITTER_S) <= allowed
    assert len(sent) >= 10 * 0.88 * min(calls, math.floor(calls) or calls) - 1


@given(RATES, GAPS, st.data())
def test_whatever_happens_no_second_has_too_many(calls: float, gaps: list[float], data: st.DataObject) -> None:
    """Calls given back, held or refused in between do not make room for more than the rate."""
    pace, now, sent, held = Pace(calls, 0.0), 0.0, [], 0
    for gap in gaps:
        now += gap
        match data.draw(
            st.sampled_from(["send", "burst", "give back", "hold", "send held", "give back held", "refused"])
        ):
            case "send":
                sent += [now] * pace.take(now)
            case "burst":
                while pace.take(now):
                    sent.append(now)
            case "give back":
                if pace.take(now):
                    pace.give_back()
            case "hold":
                if pace.take(now):
                    pace.reserve()
                    held += 1
            case "send held" if held:
                held -= 1
                pace.unreserve(now)
                sent.append(now)
            case "give back held" if held:
                held -= 1
                pace.unreserve(now)
                pace.give_back()
            case "refused":
                pace.refused(now)
    assert most_in_a_second(sent) <= max(1, math.floor(calls))


@given(RATES, GAPS)
def test_due_is_when_it_says(calls: float, gaps: list[float]) -> None:
    """At the time that was said a call may be sent, if nobody else took it; not a whole millisecond before."""
    pace, now = Pace(calls, 0.0), 0.0
    for gap in gaps:
        now += gap
        due = pace.due(now)
        assert due >= now
        if due > now + 0.001:
            assert not pace.take(due - 0.001)
        assert pace.take(max(due, now))
        now = max(due, now)


def test_one_call_a_second() -> None:
    """The least rate of all works: one call, and the next after a second."""
    assert [0.0, 1.02, 2.04] == pytest.approx(greedy(Pace(1, 0.0), 3.0))


def test_fewer_than_one_a_second() -> None:
    assert [0.0, 2.04, 4.08] == pytest.approx(greedy(Pace(0.5, 0.0), 5.0))


def test_the_rate_falls_once_a_second() -> None:
    """Refusals come in crowds, since many calls are under way at once; they are one."""
    pace = Pace(100, 0.0)
    whole = pace.rate(0.0)
    for now in (0.0, 0.1, 0.99):
        pace.refused(now)
    assert pace.rate(0.99) == pytest.approx(whole * FALL)
    pace.refused(1.0)
    assert pace.rate(1.0) == pytest.approx(whole * FALL**2)


def test_a_refusal_uses_up_what_was_saved() -> None:
    pace = Pace(1000, 0.0)
    pace.refused(0.0)
    assert not pace.take(0.0)


def test_the_rate_has_a_floor() -> None:
    pace = Pace(1000, 0.0)
    for now in range(100):
        pace.refused(float(now))
    assert pace.rate(99.0) == 1000 * LEAST_SHARE
    slow = Pace(1, 0.0)
    slow.refused(0.0)
    assert slow.rate(0.0) == pytest.approx(1 / 1.02)


@pytest.mark.parametrize("looks", [1, 7, 1000])
def test_the_rate_recovers(looks: int) -> None:
    """By a twentieth of the whole a second, after a second without a refusal; it does not matter who looks how often."""
    pace = Pace(100, 0.0)
    whole = pace.rate(0.0)
    for now in range(20):
        pace.refused(float(now))
    assert pace.rate(20.0) == 5
    for look in range(1, looks + 1):
        pace.due(20 + 4 * look / looks)
    assert pace.rate(24.0) == pytest.approx(5 + 4 * 100 / RECOVERY_S)
    assert pace.rate(20.0 + RECOVERY_S) == whole


def test_what_is_held_takes_its_place() -> None:
    """Beside a call that was taken and waits, only what is left of the burst is saved up."""
    pace = Pace(1, 0.0)
    assert pace.take(0.0)
    pace.reserve()
    assert not pace.take(100.0)
    pace.unreserve(100.2)
    assert not pace.take(100.5)
    assert pace.take(101.3)
