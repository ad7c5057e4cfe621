import asyncio
import itertools
from typing import Any

import pytest

from relay.consultant import Consultant
from relay.judge import Judge, LabelPolicy, Ruling, Thresholds, Unjudged
from relay.metrics import ModerationTally
from relay.moderator import PASS, Context, Finding, RateLimited, Span, Unauthorized, Verdict
from relay.testing.moderator import NEVER, After, ScriptedModerator
from relay.testing.reply import Lent

pytestmark = pytest.mark.jumping_clock

BLOCK = Verdict("block", "Porn", 90, reference="id-1")
CONTEXT = Context("request-1", "response", "content")


def time() -> float:
    return asyncio.get_running_loop().time()


def mask(start: int, end: int) -> Verdict:
    return Verdict("mask", "Ad", 70, (Finding("mask", "Ad", 70, (Span(start, end),)),))


class Rig:
    """A judge over scripted moderators, named a, b, …; each is a script or options."""

    def __init__(self, *moderators: Any, labels: LabelPolicy | None = None, cache_s: float = 0.0) -> None:
        self.lent = Lent()
        self.moderators = [
            ScriptedModerator(**(each if isinstance(each, dict) else {"script": (each,)})) for each in moderators
        ]
        self.consultants = [
            Consultant(
                name, each, deadline_s=2.0, cache_s=cache_s, log=self.lent.services.log, metrics=self.lent.metrics
            )
            for name, each in zip("abc", self.moderators, strict=False)
        ]
        self.judge = Judge(self.consultants, labels or LabelPolicy())
        self.tally = ModerationTally()
        self.started = time()

    async def check(self, text: str = "text", stream: str = "request-1") -> Ruling | Unjudged:
        return await self.judge.check(lambda: text, Context(stream, "response", "content"), self.tally)

    async def check_text(self, text: str = "text") -> Ruling | Unjudged:
        return await self.judge.check_text(text, CONTEXT, self.tally)

    def at(self, moderator: int) -> list[float]:
        return [round(at - self.started, 6) for at in self.moderators[moderator].at]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class TestOne:
    async def test_a_ruling(self) -> None:
        rig = Rig(BLOCK)
        assert Ruling("block", "Porn", 90, "a", "id-1") == await rig.check("four")
        assert {("a", "block"): 1} == rig.tally.checks
        assert 4 == rig.tally.checked

    async def test_the_policy(self) -> None:
        """It is what is done that is counted."""
        labels = LabelPolicy({"Porn": Thresholds(block=95, review=80)})
        rig = Rig(BLOCK, labels=labels)
        assert Ruling("review", "Porn", 90, "a", "id-1") == await rig.check()
        assert {("a", "review"): 1} == rig.tally.checks
        strict = Rig(BLOCK, labels=LabelPolicy(labels.thresholds, on_review="block"))
        assert Ruling("block", "Porn", 90, "a", "id-1") == await strict.check()
        assert {("a", "block"): 1} == strict.tally.checks

    async def test_no_verdict(self) -> None:
        rig = Rig(NEVER)
        assert Unjudged("timeout", "a") == await rig.check()
        assert {("a", "timeout"): 1} == rig.tally.checks

    async def test_nothing_was_shown(self) -> None:
        """What was not sent was not checked."""
        rig = Rig(Unauthorized("no"))
        await rig.check("four")
        assert Unjudged("breaker_open", "a") == await rig.check("four")
        assert 4 == rig.tally.checked

    async def test_a_window_grows(self) -> None:
        """What was shown last is what was checked."""
        texts = iter(["one", "longer"])
        rig = Rig({"script": (RateLimited("no"), PASS)})
        await rig.judge.check(lambda: next(texts), CONTEXT, rig.tally)
        assert 6 == rig.tally.checked

    @pytest.mark.parametrize("count", [1, 2])
    async def test_texts(self, count: int) -> None:
        """A verdict that was known, or that others asked for, is counted as that by those who did not ask."""
        rig = Rig(*[After(0.1, BLOCK)] * count, cache_s=300)
        tallies = [ModerationTally() for _ in range(3)]
        rulings = await asyncio.gather(*(rig.judge.check_text("text", CONTEXT, tally) for tally in tallies))
        assert {"block"} == {ruling.action for ruling in rulings if isinstance(ruling, Ruling)}
        assert {("a", "block"): 1} == {key: value for key, value in tallies[0].checks.items() if key[0] == "a"}
        assert {("a", "cached"): 1} == {key: value for key, value in tallies[1].checks.items() if key[0] == "a"}
        assert [4, 0, 0] == [tally.checked for tally in tallies]  # what moderators were shown
        assert [1] * count == [len(each.shown) for each in rig.moderators]

    async def test_the_policy_is_not_kept(self) -> None:
        """Verdicts are; so a change of the policy takes effect at once."""
        rig = Rig(BLOCK, cache_s=300)
        await rig.check_text()
        lax = Judge(rig.consultants, LabelPolicy({"Porn": Thresholds()}))
        assert Ruling("pass", "Porn", 90, "a", "id-1") == await lax.check_text("text", CONTEXT, rig.tally)

    async def test_in_order(self) -> None:
        assert not Rig(PASS, PASS).judge.in_order
        assert Rig(PASS, {"in_order": True}).judge.in_order


class TestSeveral:
    @pytest.mark.parametrize(
        ("verdicts", "expected"),
        [
            ([PASS, PASS], Ruling("pass", moderator="a")),
            ([PASS, BLOCK], Ruling("block", "Porn", 90, "b", "id-1")),
            ([mask(1, 2), PASS, mask(0, 3)], Ruling("mask", "Ad", 70, "a", "", (Span(0, 3), Span(1, 2)))),
            ([mask(1, 2), BLOCK], Ruling("block", "Porn", 90, "b", "id-1")),
            ([NEVER, BLOCK], Ruling("block", "Porn", 90, "b", "id-1")),
            ([BLOCK, KeyError()], Ruling("block", "Porn", 90, "a", "id-1")),
            ([NEVER, PASS], Unjudged("timeout", "a")),
            ([mask(1, 2), KeyError()], Unjudged("error", "b", Ruling("mask", "Ad", 70, "a", "", (Span(1, 2),)))),
            ([KeyError(), NEVER], Unjudged("error", "a")),
        ],
    )
    async def test_the_strictest_wins(self, verdicts: list[Any], expected: Ruling | Unjudged) -> None:
        """Windows and texts alike; one that blocks is enough, otherwise all have to speak."""
        assert expected == await Rig(*verdicts).check()
        assert expected == await Rig(*verdicts).check_text()

    async def test_each_is_counted(self) -> None:
        rig = Rig(PASS, BLOCK, NEVER)
        await rig.check("four")
        assert {("a", "pass"): 1, ("b", "block"): 1, ("c", "timeout"): 1} == rig.tally.checks
        assert 4 == rig.tally.checked

    async def test_all_at_once(self) -> None:
        rig = Rig(After(0.9), After(0.9))
        await rig.check()
        assert time() == pytest.approx(rig.started + 0.9)

    async def test_all_see_the_same(self) -> None:
        """The window is shown once, when there is a slot for the slowest."""
        rig, grown = Rig({"calls_per_second": 50}, {"calls_per_second": 1}), itertools.count()
        await asyncio.gather(*(rig.judge.check(lambda: f"{next(grown)}", CONTEXT, rig.tally) for _ in range(3)))
        assert [["0", "1", "2"]] * 2 == [each.shown for each in rig.moderators]
        assert [0, 1.02, 2.04] == rig.at(0) == rig.at(1)

    async def test_who_asked_too_often_asks_for_the_same(self) -> None:
        """The others have judged that text, and not the one that it has grown to."""
        rig, grown = Rig(PASS, {"script": (RateLimited("no"), PASS)}), itertools.count()
        await rig.judge.check(lambda: f"{next(grown)}", CONTEXT, rig.tally)
        assert [["0"], ["0", "0"]] == [each.shown for each in rig.moderators]

    @pytest.mark.parametrize("rates", [(1, 3), (3, 1), (2, 2), (1, 1000), (2, 3, 5)])
    async def test_no_budget_is_exceeded(self, rates: tuple[int, ...]) -> None:
        """While others want slots of one budget only: nobody starves, and no second has too many calls."""
        rig = Rig(*({"calls_per_second": rate} for rate in rates))
        crowd = [
            asyncio.create_task(consultant.ask(lambda: "alone", Context(f"{number}", "response", "content")))
            for consultant in rig.consultants
            for number in range(30)
        ]
        await settle()
        windows = await asyncio.gather(*(rig.check("window", f"window {number}") for number in range(10)))
        assert ["pass"] * 10 == [ruling.action for ruling in windows if isinstance(ruling, Ruling)]
        await asyncio.wait(crowd)
        for number, rate in enumerate(rates):
            sent = rig.at(number)
            assert all(late - early >= 1 for early, late in zip(sent, sent[rate:], strict=False))
            assert 40 == len(sent)

    async def test_one_is_down(self) -> None:
        """The others are asked all the same: one of them may block."""
        rig = Rig({"script": (Unauthorized("no"),)}, {"script": (PASS, PASS, BLOCK)})
        assert Unjudged("unauthorized", "a") == await rig.check()
        assert Unjudged("breaker_open", "a") == await rig.check()
        assert Ruling("block", "Porn", 90, "b", "id-1") == await rig.check()
        assert 1 == len(rig.moderators[0].shown)
        assert {
            ("a", "unauthorized"): 1,
            ("a", "breaker_open"): 2,
            ("b", "pass"): 2,
            ("b", "block"): 1,
        } == rig.tally.checks

    async def test_all_are_down(self) -> None:
        rig = Rig(Unauthorized("no"), Unauthorized("no"))
        await rig.check("four")
        assert Unjudged("breaker_open", "a") == await rig.check("four")
        assert 4 == rig.tally.checked

    async def test_one_goes_down_while_a_window_waits(self) -> None:
        """It waits for that one no more."""
        rig = Rig({"script": (After(1.5, PASS),), "calls_per_second": 5}, PASS)
        found = await asyncio.gather(*(rig.check("text", f"{number}") for number in range(30)))
        assert {Unjudged("breaker_open", "a"), Unjudged("timeout", "a")} == set(found)
        assert time() <= rig.started + 5
        assert 30 == len(rig.moderators[1].shown)

    @pytest.mark.parametrize("wait_s", [0.0, 0.5])
    async def test_being_cancelled(self, wait_s: float) -> None:
        """While it waits for a slot, or for a verdict: no call, no slot and no task is left."""
        rig = Rig({"calls_per_second": 10, "script": (NEVER,)}, {"calls_per_second": 1, "script": (NEVER,)})
        if not wait_s:
            await rig.consultants[1].budget.take("another")
        task = asyncio.create_task(rig.check())
        await asyncio.sleep(wait_s)
        await settle()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert [0, 0] == [each.budget.waiting for each in rig.consultants]
        assert all(each.given_up == len(each.shown) for each in rig.moderators)
        if not wait_s:
            assert [0, 0] == [len(each.shown) for each in rig.moderators]
            assert rig.consultants[0].budget.try_take()

    async def test_what_cannot_be_shown(self) -> None:
        def show() -> str:
            raise ZeroDivisionError

        rig = Rig({"calls_per_second": 1}, {"calls_per_second": 1})
        with pytest.raises(ZeroDivisionError):
            await rig.judge.check(show, CONTEXT, rig.tally)
        assert [True, True] == [each.budget.try_take() for each in rig.consultants]

    async def test_close(self) -> None:
        rig = Rig(NEVER, NEVER, cache_s=300)
        task = asyncio.create_task(rig.check_text())
        await settle()
        await rig.judge.close()
        assert Unjudged("error", "a") == await task
        assert [1, 1] == [each.given_up for each in rig.moderators]
