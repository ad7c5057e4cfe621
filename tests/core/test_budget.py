import asyncio
import math
from collections.abc import Awaitable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.budget import Budget
from relay.pure.pace import JITTER_S
from relay.testing.clock import JumpingLoop

pytestmark = pytest.mark.jumping_clock


def time() -> float:
    return asyncio.get_running_loop().time()


class Takers:
    """Streams that take slots, and who got one when."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.got: list[str] = []
        self.times: list[float] = []
        self.refused: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    def want(self, stream: str, count: int = 1, *, again: bool = False) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._take(stream, again)) for _ in range(count)]
        self.tasks += tasks
        return tasks

    async def _take(self, stream: str, again: bool) -> None:
        if await self.budget.take(stream, again=again):
            self.got.append(stream)
            self.times.append(time())
        else:
            self.refused.append(stream)

    async def all(self) -> None:
        await asyncio.wait(self.tasks)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def spent(calls_per_second: float) -> Takers:
    """Takers of a budget whose burst has been used up."""
    takers = Takers(Budget(calls_per_second))
    while takers.budget.try_take():
        pass
    return takers


def at_once(work: Awaitable[object]) -> object:
    """The result of work that does not wait."""
    with pytest.raises(StopIteration) as done:
        work.__await__().__next__()
    return done.value.value


async def test_a_free_slot_is_there_at_once() -> None:
    """No turn of the loop passes."""
    budget = Budget(100)
    assert budget.try_take()
    assert at_once(budget.take("a")) is True
    assert budget.waiting == 0


async def test_no_limit() -> None:
    budget = Budget(math.inf)
    assert all(budget.try_take() for _ in range(10_000))
    budget.give_back()
    budget.refused()
    budget.hold()
    budget.let_go()
    budget.dismiss()
    assert budget.rate == budget.ceiling == math.inf


@pytest.mark.parametrize("calls", [1, 2, 50, 800])
async def test_never_more_than_the_rate_in_a_second(calls: int) -> None:
    """As sent: a crowd that comes at once leaves at the rate of the budget."""
    takers = Takers(Budget(calls))
    takers.want("a", 3 * calls)
    await takers.all()
    times = takers.times
    assert all(late - early >= 1 for early, late in zip(times, times[calls:], strict=False))
    assert times[-1] - times[0] <= 3 * (1 + JITTER_S) / 0.9


async def test_streams_take_turns() -> None:
    """One that wants many delays others by one slot each."""
    takers = await spent(10)
    takers.want("greedy", 10)
    await settle()
    takers.want("a")
    takers.want("b", 2)
    await settle()
    assert takers.budget.waiting == 13
    await takers.all()
    assert takers.got == ["greedy", "a", "b", "greedy", "b", *["greedy"] * 8]
    assert takers.budget.waiting == 0


async def test_who_had_his_turn_goes_first() -> None:
    """A call that is asked once more does not queue behind all streams again."""
    takers = await spent(10)
    takers.want("a", 2)
    takers.want("b")
    await settle()
    takers.want("b", 2, again=True)
    await takers.all()
    assert takers.got == ["b", "b", "a", "b", "a"]


async def test_nobody_passes_those_who_wait() -> None:
    """A slot that has become free belongs to who waits for it, not to who comes next."""
    takers = await spent(10)
    takers.want("a")
    await settle()
    asyncio.get_running_loop().jump(1.0)  # type: ignore[attr-defined]
    assert not takers.budget.try_take()
    await takers.all()
    assert takers.got == ["a"]


async def test_cancelled_waiters_leave_nothing() -> None:
    """Their places go to others, their streams are forgotten, and no timer is left."""
    takers = await spent(10)
    gone = takers.want("a", 3) + takers.want("b", again=True)
    kept = takers.want("c")
    await settle()
    for task in gone:
        task.cancel()
    await takers.all()
    assert takers.got == ["c"]
    assert kept[0].done()
    for task in takers.want("a"):
        await settle()
        task.cancel()
        await settle()
    assert takers.budget.waiting == 0
    assert not takers.budget._queues
    assert not takers.budget._turns
    assert takers.budget._timer is None


async def test_cancelled_with_a_slot_in_hand() -> None:
    """The slot was given and its task is cancelled before it runs: the next one gets it, at the same time."""
    takers = await spent(10)
    first, _ = takers.want("a") + takers.want("b")
    await settle()
    asyncio.get_running_loop().jump(0.15)  # type: ignore[attr-defined]
    takers.budget._tick()
    first.cancel()
    before = time()
    await takers.all()
    assert takers.got == ["b"]
    assert takers.times == [before]
    assert first.cancelled()


async def test_cancelled_before_its_turn_is_taken() -> None:
    """A slot is not given to one who is cancelled in the same turn of the loop, and has not heard of it yet."""
    takers = await spent(10)
    first, _ = takers.want("a") + takers.want("b")
    await settle()
    first.cancel()
    asyncio.get_running_loop().jump(0.15)  # type: ignore[attr-defined]
    takers.budget._tick()
    await takers.all()
    assert takers.got == ["b"]
    assert takers.budget.waiting == 0


async def test_dismissed() -> None:
    """All who wait hear that there is no slot; who comes later may wait again."""
    takers = await spent(10)
    takers.want("a", 3)
    cancelled = takers.want("a") + takers.want("b", again=True)
    await settle()
    cancelled[0].cancel()
    takers.budget.dismiss()
    await takers.all()
    assert takers.refused == ["b", "a", "a", "a"]
    assert takers.budget.waiting == 0
    takers.want("c")
    await takers.all()
    assert takers.got == ["c"]


async def test_given_back() -> None:
    """A slot that is not used is the next one's at once."""
    takers = await spent(1)
    takers.want("a")
    await settle()
    before = time()
    takers.budget.give_back()
    await takers.all()
    assert time() == before


async def test_held() -> None:
    """A slot that is used late is not one more."""
    budget = Budget(1)
    assert budget.try_take()
    budget.hold()
    await asyncio.sleep(10)
    assert not budget.try_take()
    budget.let_go()
    assert not budget.try_take()
    await budget.take("a")
    assert time() == pytest.approx(1010 + 1.02)


async def test_refused() -> None:
    """Slots come more slowly after a refusal, and the timer that is set already gives none too early."""
    takers = await spent(100)
    whole = takers.budget.rate
    takers.want("a", 2)
    await settle()
    takers.budget.refused()
    assert takers.budget.rate < whole
    await takers.all()
    assert takers.times[1] - takers.times[0] == pytest.approx(1 / (0.7 * whole), abs=0.001)


COMERS = st.tuples(
    st.floats(0, 5),  # when it comes
    st.sampled_from("abcd"),  # its stream
    st.booleans(),  # whether it has had its turn
    st.none() | st.floats(0, 5),  # after how long it is cancelled
    st.booleans(),  # whether it uses its slot
)


@given(st.sampled_from([1, 3, 20, 100]), st.lists(COMERS, max_size=60), st.lists(st.floats(0, 10), max_size=3))
def test_whatever_happens(
    calls: int, comers: list[tuple[float, str, bool, float | None, bool]], refusals: list[float]
) -> None:
    """Every comer gets a slot or leaves, no second has too many, and nothing is left."""
    loop = JumpingLoop()
    sent: list[float] = []

    async def comer(budget: Budget, stream: str, again: bool, uses: bool) -> None:
        assert await budget.take(stream, again=again)
        if uses:
            sent.append(loop.time())
        else:
            budget.give_back()

    async def run() -> None:
        budget, tasks = Budget(calls), []
        for at in refusals:
            loop.call_later(at, budget.refused)

        def come(stream: str, again: bool, leaves: float | None, uses: bool) -> None:
            task = loop.create_task(comer(budget, stream, again, uses))
            tasks.append(task)
            if leaves is not None:
                loop.call_later(leaves, task.cancel)

        for at, *fields in comers:
            loop.call_later(at, come, *fields)
        await asyncio.sleep(100)
        assert all(task.cancelled() or task.result() is None for task in tasks)
        assert budget.waiting == 0
        assert not budget._queues
        assert not budget._turns
        assert not budget._again
        assert budget._timer is None

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
    assert all(late - early >= 1 for early, late in zip(sent, sent[calls:], strict=False))
