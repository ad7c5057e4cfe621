from hypothesis import given
from hypothesis import strategies as st

from relay.pure.retry import INITIAL_TOKENS, MAX_TOKENS, MIN_RETRIES_PER_S, RETRY_RATIO, RetryBudget


def spent(budget: RetryBudget) -> int:
    return next(count for count in range(10_000) if not budget.spend())


def test_the_first_ones() -> None:
    """A relay that has just started may retry a little."""
    assert spent(RetryBudget(0)) == INITIAL_TOKENS


def test_a_share_of_all() -> None:
    budget = RetryBudget(0)
    spent(budget)
    for _ in range(100):
        budget.earn(0)
    assert abs(spent(budget) - 100 * RETRY_RATIO) <= 1


def test_a_trickle() -> None:
    """One request now and then may always be retried."""
    budget = RetryBudget(0)
    spent(budget)
    budget.earn(1 / MIN_RETRIES_PER_S)
    assert budget.spend()


def test_it_does_not_save_up() -> None:
    budget = RetryBudget(0)
    for second in range(1000):
        budget.earn(second)
    assert spent(budget) == MAX_TOKENS


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), max_size=300))
def test_never_more_than_was_earned(requests: list[tuple[float, bool]]) -> None:
    """Also when the clock stands still or goes back."""
    budget, now, passed, retried = RetryBudget(0), 0.0, 0.0, 0
    for later, fails in requests:
        now += later
        passed += max(0.0, later)
        budget.earn(now)
        retried += fails and budget.spend()
    assert retried <= INITIAL_TOKENS + RETRY_RATIO * len(requests) + MIN_RETRIES_PER_S * passed + 1e-6
