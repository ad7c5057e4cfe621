"""What is told of an allowed rate."""

from hypothesis import given
from hypothesis import strategies as st

from relay.pure.pace import Pace
from relay.pure.throttle import Change, Throttle

WHOLE = 100.0


def told(*rates: float) -> list[Change]:
    throttle = Throttle(WHOLE)
    return [change for rate in rates if (change := throttle.look(rate, WHOLE)) is not None]


def test_falls_and_the_end_of_the_climb_are_told() -> None:
    """What lies between is not."""
    assert [Change(100, 70), Change(90, 63), Change(95, 100)] == told(100, 70, 80, 90, 63, 80, 95, 100, 100)


def test_rounding_is_no_fall() -> None:
    """A store says its rates in thousandths."""
    assert [] == told(99.999, 100, 99.98)
    assert [Change(100, 70), Change(90, 99.9)] == told(70, 90, 99.9)


def test_another_whole_is_no_fall() -> None:
    """While the store is away a process has its part, all of it."""
    throttle = Throttle(WHOLE)
    assert throttle.look(25.0, 25.0) is None
    assert throttle.look(17.5, 25.0) == Change(25.0, 17.5)


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=40))
def test_it_follows_a_pace(calls: list[tuple[float, bool]]) -> None:
    """Of a pace that is looked at after every call: what is told last is how it stands, but for a climb."""
    now, pace = 0.0, Pace(50, 0.0)
    throttle, last = Throttle(pace.rate(0.0)), Change(0, pace.whole)
    for pause_s, refused in calls:
        now += pause_s
        change = throttle.look(pace.rate(now), pace.whole)
        assert change is None or change.before < change.now
        last = change or last
        if refused:
            before = pace.rate(now)
            pace.refused(now)
            change = throttle.look(pace.rate(now), pace.whole)
            assert (change is not None) is (pace.rate(now) < before - 0.005 * pace.whole)
            last = change or last
    throttled = pace.rate(now) < 0.994 * pace.whole
    assert not throttled or last.now < last.before
