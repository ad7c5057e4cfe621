from hypothesis import given
from hypothesis import strategies as st

from relay.pure.health import (
    BASE_EJECTION_S,
    CONSECUTIVE_FAILURES,
    MAX_EJECTION_S,
    PROBE_S,
    SLOW_HEADS,
    Health,
)


def ejected(health: Health, at: float = 0.0) -> Health:
    reasons = [health.failed(at, at) for _ in range(CONSECUTIVE_FAILURES)]
    assert reasons == [None] * (CONSECUTIVE_FAILURES - 1) + ["heads"]
    assert health.ejected
    return health


def test_a_few_failures_are_nothing() -> None:
    """Failures count only in a row."""
    health = Health()
    for _ in range(10):
        for _ in range(CONSECUTIVE_FAILURES - 1):
            assert health.failed(0, 0) is None
        assert health.answered(0, 0) is None
    assert health.ready(0)


def test_enough_of_them_eject() -> None:
    health = ejected(Health(), at=100)
    assert not health.ready(100 + BASE_EJECTION_S - 0.001)
    assert health.ready(100 + BASE_EJECTION_S)


def test_requests_under_way_prove_nothing_new() -> None:
    """What was asked before the ejection neither prolongs it nor ends it, however it ends."""
    health = ejected(Health(), at=1)
    for _ in range(100):
        assert health.failed(0.5, 1.5) is None
        assert health.broke_off(0.5, 1.5) is None
        assert health.answered(0.5, 1.5, model="m", usual_s=0.1) is None
        health.served(0.5)
    assert health.ejected
    assert not health.ready(1 + BASE_EJECTION_S - 0.001)
    assert health.ready(1 + BASE_EJECTION_S)


def test_one_probe_at_a_time() -> None:
    """When the time is over one request tries; another one only when the first has had its time."""
    health, now = ejected(Health()), BASE_EJECTION_S
    health.asked(now)
    assert not health.ready(now + PROBE_S - 0.001)
    assert health.ready(now + PROBE_S)
    health.asked(now + PROBE_S)
    assert health.answered(now + PROBE_S, now + PROBE_S) is None
    assert health.ready(now + PROBE_S)
    assert not health.ejected


def test_each_failed_probe_doubles_the_time() -> None:
    """And is no ejection of its own: it has never been back."""
    health, now = ejected(Health()), 0.0
    waits = []
    for _ in range(8):
        wait = next(step / 2 for step in range(1000) if health.ready(now + step / 2))
        waits.append(wait)
        now += wait
        health.asked(now)
        assert health.failed(now, now) is None
    assert waits == [5, 10, 20, 40, 60, 60, 60, 60]


def test_requests_of_an_outage_prove_nothing_new() -> None:
    """When all are ejected they are asked all the same: their failures do not prolong it, an answer ends it."""
    health = ejected(Health())
    for _ in range(100):
        health.asked(1)
        assert health.failed(1, 2) is None
        assert health.broke_off(1, 2) is None
    assert health.ready(BASE_EJECTION_S)
    health.asked(1)
    health.answered(1, 2)
    assert not health.ejected
    assert health.ready(2)


def test_a_reply_that_ends_well_makes_good() -> None:
    """Coming back is not enough: one that always comes back and fails again waits longer each time."""
    health = ejected(Health())
    health.answered(BASE_EJECTION_S, BASE_EJECTION_S)
    ejected(health, BASE_EJECTION_S)
    assert not health.ready(2 * BASE_EJECTION_S)
    health.answered(100, 100)
    health.served(100)
    ejected(health, 100)
    assert health.ready(100 + BASE_EJECTION_S)


def test_replies_that_break_off() -> None:
    """Heads that come do not hide it; a reply that ends well does."""
    health = Health()
    for _ in range(CONSECUTIVE_FAILURES - 1):
        health.answered(0, 0)
        assert health.broke_off(0, 0) is None
    health.served(0)
    reasons = [health.broke_off(0, 0) for _ in range(CONSECUTIVE_FAILURES)]
    assert reasons == [None] * (CONSECUTIVE_FAILURES - 1) + ["replies"]
    assert not health.ready(0)


def test_slow_heads() -> None:
    """Slow is what takes several times another's usual time, and longer than people notice."""
    health = Health()
    for took_s, usual_s in ((60.0, None), (1.9, 0.1), (7.9, 2.0)):
        assert [None] * 30 == [health.answered(0, took_s, model="m", usual_s=usual_s) for _ in range(30)]
    assert [None] * 30 == [health.answered(0, 60, usual_s=2.0) for _ in range(30)]  # not timed
    reasons = [health.answered(0, 8.1, model="m", usual_s=2.0) for _ in range(SLOW_HEADS)]
    assert reasons == [None] * (SLOW_HEADS - 1) + ["slow"]
    assert not health.ready(8.1)


def test_usual_time() -> None:
    """It is known after ten, follows what is new, and forgets."""
    health = Health()
    for _ in range(9):
        health.answered(0, 1.0, model="m")
    assert health.usual_s("m") is None
    health.answered(0, 1.0, model="m")
    assert health.usual_s("m") == 1.0
    assert health.usual_s("other") is None  # each model has its own
    for _ in range(100):
        health.answered(0, 3.0, model="m")
    assert 2.9 < health.usual_s("m") < 3.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["asked", "answered", "failed", "broke_off", "served"]), st.floats(0, 20), st.floats(0, 60)
        )
    )
)
def test_it_always_comes_back(events: list[tuple[str, float, float]]) -> None:
    """Whatever happened, an upstream may be asked again after the longest time that there is."""
    health, now = Health(), 0.0
    for event, later, ago in events:
        now += later
        asked_at = max(0.0, now - ago)
        match event:
            case "asked":
                health.asked(now)
            case "served":
                health.served(asked_at)
            case "answered":
                health.answered(asked_at, now, model="m", usual_s=0.1)
            case "failed":
                health.failed(asked_at, now)
            case _:
                health.broke_off(asked_at, now)
    assert health.ready(now + MAX_EJECTION_S)
