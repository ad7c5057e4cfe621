"""No minute holds more than the limit, and what was an estimate counts as if it had been right."""

from fractions import Fraction
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from relay.pure.bucket import Decision
from relay.pure.sliding import SLOT_S, SLOTS, SlidingWindow, Taken, correct

shares = st.integers(0, 100)
# Seconds until the next one asks. Eighths are exact in floats.
waits = st.sampled_from([0.0, 0.0, 0.125, 1.0, 5.0, 20.0, 61.0]) | st.integers(0, 800).map(lambda eighths: eighths / 8)
asking = st.lists(st.tuples(waits, shares), max_size=60)
starts = st.sampled_from([0.0, 4.875, 1e6, 1.7e9])


def test_a_minute() -> None:
    """What was taken is back a minute later, when its slot has passed; until then the wait says so."""
    window, taken = SlidingWindow(100), Taken()
    assert Decision(True, 100, 40, 0.0, 65.0) == window.take(taken, 0.0, 60)
    assert Decision(True, 100, 0, 0.0, 60.0) == replace(window.take(taken, 7.0, 40), reset_s=60.0)
    assert Decision(False, 100, 0, 58.0, 63.0) == window.look(taken, 7.0, 60)
    assert Decision(False, 100, 0, 63.0, 63.0) == window.look(taken, 7.0, 61)
    assert Decision(False, 100, 0, 0.125, 5.125) == window.look(taken, 64.875, 1)
    assert Decision(True, 100, 60, 0.0, 5.0) == window.look(taken, 65.0, 60)
    assert Decision(True, 100, 100, 0.0, 0.0) == window.look(taken, 70.0, 100)
    assert not taken


@given(st.integers(100, 300), starts, asking)
def test_no_minute_holds_more(limit: int, start: float, asked: list[tuple[float, int]]) -> None:
    """And who comes back after his wait is let in."""
    window, taken, passed = SlidingWindow(limit), Taken(), []
    times = accumulate((wait for wait, _ in asked), initial=start)
    for now, (_, share) in zip(times, asked, strict=False):
        decision = window.look(taken, now, share)
        assert decision.allowed is (decision.retry_after_s == 0)
        if decision.allowed:
            window.take(taken, now, share)
            passed.append((Fraction(now), share))
        else:
            assert window.look(dict(taken), now + decision.retry_after_s, share).allowed
            assert not window.look(dict(taken), now + decision.retry_after_s - 1e-6, share).allowed
    for begun, _ in passed:
        assert sum(share for now, share in passed if begun <= now <= begun + 60) <= limit


@given(starts, asking, st.data())
def test_an_estimate_set_right(start: float, asked: list[tuple[float, int]], data: st.DataObject) -> None:
    """Too much: as if it had been right from the beginning. Too little: the rest counts from when it is known."""
    one, other = Taken(), Taken()
    window, now = SlidingWindow(10**6), start
    for wait, used in asked:
        estimate = data.draw(shares)
        later = now + data.draw(waits)
        window.take(one, now, estimate)
        correct(one, now, estimate, used, later)
        window.take(other, now, min(used, estimate))
        window.take(other, later, max(0, used - estimate))
        now = later + wait
        assert window.look(one, now) == window.look(other, now)


@given(starts, asking, st.integers(1, 1000))
def test_a_clock_that_is_set_back(start: float, asked: list[tuple[float, int]], back_s: int) -> None:
    """Nothing counts for more than two minutes and a slot, however far."""
    window, taken, now = SlidingWindow(10**6), Taken(), start + 1000
    for wait, share in asked:
        now += wait
        window.take(taken, now, share)
    assert window.look(taken, now - back_s).reset_s <= (2 * SLOTS + 1) * SLOT_S
