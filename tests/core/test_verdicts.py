import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from relay import verdicts as module
from relay.moderator import PASS, Finding, Span, Verdict
from relay.verdicts import Verdicts

pytestmark = pytest.mark.jumping_clock

BLOCK = Verdict("block", "Porn", 90)


class Service:
    """Gives its answer after a second, and counts."""

    def __init__(self, answer: Any = PASS) -> None:
        self.answer = answer
        self.calls = 0
        self.ended = 0
        self.cancelled = 0

    def __call__(self) -> Coroutine[Any, Any, Any]:
        return self._call()

    async def _call(self) -> Any:
        self.calls += 1
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ended += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_verdict_is_kept() -> None:
    """The same text is not asked for again until its verdict has expired; another text is."""
    verdicts, service = Verdicts(300), Service(BLOCK)
    assert (BLOCK, False) == await verdicts.ask("a", service)
    assert (BLOCK, True) == await verdicts.ask("a", service)
    assert service.calls == 1
    assert (BLOCK, False) == await verdicts.ask("b", service)
    await asyncio.sleep(298)
    assert (BLOCK, True) == await verdicts.ask("a", service)
    await asyncio.sleep(1.5)
    assert (BLOCK, False) == await verdicts.ask("a", service)


async def test_a_failure_is_not_kept() -> None:
    verdicts, service = Verdicts(300), Service("no verdict")
    assert ("no verdict", False) == await verdicts.ask("a", service)
    assert ("no verdict", False) == await verdicts.ask("a", service)
    assert service.calls == 2


async def test_what_goes_wrong_is_not_kept() -> None:
    """An error reaches all who wait, and the next one asks again."""
    verdicts, service = Verdicts(300), Service(ZeroDivisionError())
    found = await asyncio.gather(*(verdicts.ask("a", service) for _ in range(3)), return_exceptions=True)
    assert [ZeroDivisionError] * 3 == [type(each) for each in found]
    service.answer = PASS
    assert (PASS, False) == await verdicts.ask("a", service)


async def test_any_text_has_a_key() -> None:
    """Half a surrogate pair, nothing, and everything that differs."""
    verdicts, service = Verdicts(300), Service()
    for text in ("\ud83d", "", "a", "A", "a ", "\u00e9", "e\u0301"):
        assert (PASS, False) == await verdicts.ask(text, service)


@pytest.mark.parametrize("answer", [PASS, "no verdict"])
async def test_a_call_is_shared(answer: Any) -> None:
    """Who comes while a text is asked for waits for that answer, whatever it is."""
    verdicts, service = Verdicts(300), Service(answer)
    found = await asyncio.gather(*(verdicts.ask("a", service) for _ in range(10)))
    assert [(answer, False), *[(answer, True)] * 9] == found
    assert service.calls == 1


async def test_the_first_may_leave() -> None:
    """The call does not belong to whoever caused it."""
    verdicts, service = Verdicts(300), Service()
    first, second = (asyncio.create_task(verdicts.ask("a", service)) for _ in range(2))
    await settle()
    first.cancel()
    assert (PASS, True) == await second
    assert first.cancelled()
    assert service.cancelled == 0


async def test_the_last_who_leaves_ends_the_call() -> None:
    """And whoever comes then starts a new one, even before the old one has ended."""
    verdicts, service = Verdicts(300), Service()
    waiting = [asyncio.create_task(verdicts.ask("a", service)) for _ in range(3)]
    await settle()
    for task in waiting:
        task.cancel()
    late = asyncio.create_task(verdicts.ask("a", service))
    assert (PASS, False) == await late
    assert all(task.cancelled() for task in waiting)
    assert (service.calls, service.cancelled) == (2, 1)
    assert (PASS, True) == await verdicts.ask("a", service)


async def test_leaving_before_it_has_begun() -> None:
    """A call whose caller is gone before its first step leaves nothing."""
    verdicts, service = Verdicts(300), Service()
    task = asyncio.create_task(verdicts.ask("a", service))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await settle()
    assert not verdicts._calls
    assert not verdicts._tasks
    assert (PASS, False) == await verdicts.ask("a", service)


async def test_close() -> None:
    """Cancels what is under way and waits for it; who waits for that hears of it."""
    verdicts, service = Verdicts(300), Service()
    waiting = [asyncio.create_task(verdicts.ask(text, service)) for text in "aab"]
    await settle()
    await verdicts.close()
    assert (service.calls, service.ended) == (2, 2)
    await asyncio.wait(waiting)
    assert [True] * 3 == [task.cancelled() for task in waiting]
    await verdicts.close()


async def test_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest make room."""
    monkeypatch.setattr(module, "MAX_VERDICTS", 3)
    verdicts, service = Verdicts(300), Service()
    for text in "abcd":
        await verdicts.ask(text, service)
    known: Callable[[str], Coroutine[Any, Any, Any]] = lambda text: verdicts.ask(text, service)  # noqa: E731
    assert [(PASS, True)] * 3 == [await known(text) for text in "bcd"]
    assert (PASS, False) == await known("a")


async def test_nothing_of_a_text_is_kept() -> None:
    verdicts = Verdicts(300)
    await verdicts.ask("a secret", Service())
    assert "secret" not in repr(vars(verdicts))


async def test_no_text_is_kept() -> None:
    """Of what was found that it was, and whether its place was told: not where, nor the words."""
    verdicts = Verdicts(60)
    found = [Finding("mask", "Ad", 70, (Span(at, at + 2, "ab"),)) for at in range(100)] + [Finding("review", "Porn", 3)]

    async def call() -> Verdict:
        return Verdict("mask", "Ad", 70, tuple(found), "id-1")

    await verdicts.ask("text", call)
    kept, known = await verdicts.ask("text", call)
    assert known
    expected = (Finding("mask", "Ad", 70, (Span(0, 0),)), Finding("review", "Porn", 3))
    assert kept == Verdict("mask", "Ad", 70, expected, "id-1")
    await verdicts.close()
