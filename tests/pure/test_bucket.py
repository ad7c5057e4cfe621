"""A bucket never lets through more than its burst and its rate, and what it says about waiting is so."""

import math
from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relay.pure.bucket import NEVER, STEPS, Bucket, Decision

requests = st.integers(1, 100_000)
periods = st.sampled_from([1.0, 60.0, 86_400.0])
bursts = st.integers(1, 40)
# The loop's clock starts with the machine; some stores tell the time since 1970.
clocks = st.sampled_from([0.0, 0.1, 1e3, 1e6, 1e7, 1.7e9]) | st.floats(0, 2e9)
# How long until the next one asks, in intervals: many at once, some evenly spaced, some after a while.
waits = st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0, 1 / 3]) | st.floats(0, 60), max_size=80)


def asked(bucket: Bucket, times: list[float], tat: float = NEVER) -> list[Decision]:
    """What one caller is told."""
    decisions = []
    for now in times:
        decision, tat = bucket.ask(tat, now)
        decisions.append(decision)
    return decisions


def times_of(start: float, per_s: float, waited: list[float]) -> list[float]:
    return list(accumulate((wait / per_s for wait in waited), initial=start))


@pytest.mark.parametrize("now", [0.0, 0.1, 12_345.678, 1e7 + 0.1, 1.7e9 + 0.3])
def test_a_burst_at_once(now: float) -> None:
    """Exactly the burst passes, counted down to nothing, at any time of the clock; then one for each interval."""
    bucket = Bucket(600, 60.0, 600)
    decisions = asked(bucket, [now] * 601)
    assert [*range(599, -1, -1), 0] == [decision.remaining for decision in decisions]
    assert [True] * 600 + [False] == [decision.allowed for decision in decisions]
    assert {600} == {decision.limit for decision in decisions}
    assert pytest.approx((0.1, 60), rel=1e-5) == (decisions[0].reset_s, decisions[599].reset_s)
    assert pytest.approx(0.1, abs=1e-5) == decisions[600].retry_after_s


def test_one_after_the_other() -> None:
    """A burst of one is one request an interval, and no more."""
    bucket = Bucket(1, 60.0, 1)
    decisions = asked(bucket, [0.0, 0.0, 59.0, 60.0, 61.0, 1000.0])
    assert [True, False, False, True, False, True] == [decision.allowed for decision in decisions]
    assert [0, 60, 1, 0, 59, 0] == [decision.retry_after_s for decision in decisions]
    assert pytest.approx([60, 60, 1, 60, 59, 60], abs=1e-4) == [decision.reset_s for decision in decisions]


@given(requests, periods, bursts, clocks, waits)
def test_no_window_holds_more(count: int, period_s: float, burst: int, start: float, waited: list[float]) -> None:
    """Between any two requests that passed there are at most the burst and what the rate gives in that time."""
    times = times_of(start, count / period_s, waited)
    decisions = asked(Bucket(count, period_s, burst), times)
    passed = [Fraction(now) for now, decision in zip(times, decisions, strict=True) if decision.allowed]
    per_s = Fraction(count) / Fraction(period_s)
    # The clock is read in steps, and its product with the rate is rounded.
    step = Fraction(1, STEPS) + 4 * Fraction(math.ulp(max(times) * count / period_s))
    for first, begun in enumerate(passed):
        for last, now in enumerate(passed[first:], 1):
            assert last <= burst + (now - begun) * per_s + step


@given(st.integers(0, 6), bursts, st.lists(st.integers(0, 300), max_size=80), st.integers(0, 2**40))
def test_against_the_recommendation(rate_log: int, burst: int, gaps: list[int], start: int) -> None:
    """With numbers that floats hold, every decision is that of I.371's virtual scheduling algorithm in fractions."""
    interval = Fraction(1, 2**rate_log)
    tolerance = (burst - 1) * interval
    times = [Fraction(tick, 64) for tick in accumulate(gaps, initial=start)]
    expected, tat = [], times[0]
    for now in times:
        if now < tat - tolerance:
            expected.append((False, tat - tolerance - now, tat - now))
        else:
            tat = max(now, tat) + interval
            expected.append((True, Fraction(0), tat - now))
    decisions = asked(Bucket(2**rate_log, 1.0, burst), [float(now) for now in times])
    assert expected == [(decision.allowed, decision.retry_after_s, decision.reset_s) for decision in decisions]


@given(requests, periods, bursts, clocks, waits)
def test_the_wait_is_exact(count: int, period_s: float, burst: int, start: float, waited: list[float]) -> None:
    """Who comes back after `retry_after_s` passes; who comes a moment earlier does not."""
    bucket, tat = Bucket(count, period_s, burst), NEVER
    for now in times_of(start, count / period_s, waited):
        decision, tat = bucket.ask(tat, now)
        assert decision.allowed is (decision.retry_after_s == 0)
        if not decision.allowed:
            then = now + decision.retry_after_s
            assert then > now
            assert bucket.ask(tat, then)[0].allowed
            assert not bucket.ask(tat, then - 4 * math.ulp(then))[0].allowed


@given(requests, periods, bursts, clocks, waits)
def test_what_remains_passes(count: int, period_s: float, burst: int, start: float, waited: list[float]) -> None:
    """As many as remain pass at the same instant, and no more; after `reset_s` the whole burst does."""
    bucket = Bucket(count, period_s, burst)
    times = times_of(start, count / period_s, waited)
    tat = NEVER
    for now in times:
        decision, tat = bucket.ask(tat, now)
    more = asked(bucket, [times[-1]] * (decision.remaining + 1), tat)
    assert [True] * decision.remaining + [False] == [after.allowed for after in more]
    later = math.nextafter(times[-1] + decision.reset_s, math.inf) + 1 / (count / period_s * STEPS)
    assert bucket.is_full(tat, later)
    assert [True] * burst + [False] == [after.allowed for after in asked(bucket, [later] * (burst + 1), tat)]


@given(requests, periods, bursts, clocks, waits)
def test_looking_takes_nothing(count: int, period_s: float, burst: int, start: float, waited: list[float]) -> None:
    """`look` says whether one would pass, and how many."""
    bucket, tat = Bucket(count, period_s, burst), NEVER
    for now in times_of(start, count / period_s, waited):
        seen = bucket.look(tat, now)
        assert bucket.is_full(tat, now) is (seen.reset_s == 0)
        assert seen.remaining == burst or seen.reset_s > 0
        decision, after = bucket.ask(tat, now)
        assert (seen.allowed, seen.retry_after_s) == (decision.allowed, decision.retry_after_s)
        if decision.allowed:
            assert seen.remaining - 1 == decision.remaining
        else:
            assert (seen, tat) == (decision, after)
        tat = after


@given(requests, periods, bursts, st.floats(1, 1e9), st.lists(st.floats(-1e6, 0), max_size=80))
def test_a_clock_that_goes_back(count: int, period_s: float, burst: int, start: float, backs: list[float]) -> None:
    """Nobody gains: what passes at earlier times comes out of the same burst. What remains never grows."""
    bucket = Bucket(count, period_s, burst)
    decisions = asked(bucket, [start, *(max(0.0, start + back) for back in backs)])
    assert sum(decision.allowed for decision in decisions) <= burst
    # And whoever stands at the latest time is told no more than if the clock had stood still.
    tat = NEVER
    for back in [0.0, *backs]:
        _, tat = bucket.ask(tat, max(0.0, start + back))
    passed = sum(decision.allowed for decision in decisions)
    assert burst - passed == bucket.look(tat, start).remaining


@given(requests, periods, bursts, clocks, st.floats(0, 1e4), st.floats(0, 1e4))
def test_waiting_never_harms(
    count: int, period_s: float, burst: int, start: float, sooner: float, later: float
) -> None:
    """The later it is, the more remains and the shorter are the waits."""
    assume(sooner <= later)
    bucket, tat = Bucket(count, period_s, burst), NEVER
    for _ in range(burst):
        _, tat = bucket.ask(tat, start)
    one, other = bucket.look(tat, start + sooner), bucket.look(tat, start + later)
    assert one.remaining <= other.remaining
    assert one.reset_s >= other.reset_s
    assert one.allowed <= other.allowed


@given(requests, periods, bursts, clocks, waits)
def test_passes_says_what_ask_does(count: int, period_s: float, burst: int, start: float, waited: list[float]) -> None:
    bucket, tat = Bucket(count, period_s, burst), NEVER
    for now in times_of(start, count / period_s, waited):
        allowed = bucket.passes(tat, now)
        decision, tat = bucket.ask(tat, now)
        assert allowed is decision.allowed


@given(requests, requests, bursts, clocks, st.integers(0, 40))
def test_a_caller_whose_bucket_is_another_one(count: int, other: int, burst: int, start: float, asked: int) -> None:
    """As many of its requests have not come back; one who never asked has not asked."""
    one, another = Bucket(count, 60.0, burst), Bucket(other, 60.0, 40)
    assert one.moved(NEVER, start, another) == NEVER
    tat = NEVER
    for _ in range(min(asked, burst)):
        _, tat = one.ask(tat, start)
    assert 40 - min(asked, burst) == another.look(one.moved(tat, start, another), start).remaining
