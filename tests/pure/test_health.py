from hypothesis import given
from hypothesis import strategies as st

from relay.pure.health import EJECTED_AT_MOST_S, EJECTED_S, FAILURES, PROBE_S, SLOW_HEADS, Health


def ejected(health: Health, now: float = 0.0) -> Health:
    assert ["heads"] == [reason for _ in range(FAILURES) if (reason := health.failed(now))]
    return health


def test_a_few_failures_are_nothing() -> None:
    """Failures count only in a row."""
    health = Health()
    for _ in range(10):
        for _ in range(FAILURES - 1):
            assert health.failed(0) is None
        assert health.answered(0) is None
    assert health.ready(0)


def test_enough_of_them_eject() -> None:
    health = ejected(Health(), now=100)
    assert not health.ready(100 + EJECTED_S - 0.001)
    assert health.ready(100 + EJECTED_S)


def test_requests_under_way_prove_nothing_new() -> None:
    """A hundred that fail at once eject once, for the shortest time."""
    health = ejected(Health())
    assert [None] * 95 == [health.failed(0.1) for _ in range(95)]
    assert health.ready(EJECTED_S)


def test_one_probe_at_a_time() -> None:
    """When the time is over one request tries; another one only when the first has had its time."""
    health = ejected(Health())
    health.asked(EJECTED_S)
    assert not health.ready(EJECTED_S + PROBE_S - 0.001)
    assert health.ready(EJECTED_S + PROBE_S)
    health.asked(EJECTED_S + PROBE_S)
    assert health.answered(EJECTED_S + PROBE_S) is None
    assert health.ready(EJECTED_S + PROBE_S)


def test_each_failed_probe_doubles_the_time() -> None:
    health, now = ejected(Health()), 0.0
    waits = []
    for _ in range(8):
        wait = next(step / 2 for step in range(1000) if health.ready(now + step / 2))
        waits.append(wait)
        now += wait
        health.asked(now)
        assert health.failed(now) == "heads"
    assert waits == [5, 10, 20, 40, 60, 60, 60, 60]


def test_a_reply_that_ends_well_makes_good() -> None:
    """Coming back is not enough: one that always comes back and fails again waits longer each time."""
    health = ejected(Health())
    health.answered(EJECTED_S)
    ejected(health, EJECTED_S)
    assert not health.ready(2 * EJECTED_S)
    health.answered(100)
    health.served()
    ejected(health, 100)
    assert health.ready(100 + EJECTED_S)


def test_replies_that_break_off() -> None:
    """Heads that come do not hide it; a reply that ends well does."""
    health = Health()
    for _ in range(FAILURES - 1):
        health.answered(0)
        assert health.broke_off(0) is None
    health.served()
    assert [None] * (FAILURES - 1) + ["replies"] == [health.broke_off(0) for _ in range(FAILURES)]
    assert health.broke_off(0) is None  # it is ejected already


def test_slow_heads() -> None:
    """Slow is what takes several times another's usual time, and longer than people notice."""
    health = Health()
    for took_s, usual_s in ((60, None), (1.9, 0.1), (7.9, 2.0)):
        assert [None] * 30 == [health.answered(0, took_s, usual_s) for _ in range(30)]
    assert [None] * (SLOW_HEADS - 1) + ["slow"] == [health.answered(0, 8.1, 2.0) for _ in range(SLOW_HEADS)]
    assert not health.ready(0)


def test_usual_time() -> None:
    """It is known after ten, follows what is new, and forgets."""
    health = Health()
    for _ in range(9):
        health.answered(0, 1.0)
    assert health.usual_s is None
    health.answered(0, 1.0)
    assert health.usual_s == 1.0
    for _ in range(100):
        health.answered(0, 3.0)
    assert 2.9 < health.usual_s < 3.0


@given(st.lists(st.tuples(st.sampled_from(["asked", "answered", "failed", "broke_off", "served"]), st.floats(0, 20))))
def test_it_always_comes_back(events: list[tuple[str, float]]) -> None:
    """Whatever happened, an upstream may be asked again after the longest time that there is."""
    health, now = Health(), 0.0
    for event, later in events:
        now += later
        method = getattr(health, event)
        if event == "served":
            method()
        else:
            method(now)
    assert health.ready(now + EJECTED_AT_MOST_S)
