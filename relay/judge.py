"""The judge: several moderators, one ruling.

Each moderator is asked by a `Consultant`, which sees to its budget, its deadline and its breaker. All are asked at
once; the strictest verdict counts (`relay.labels`). One that blocks is enough, even if another says nothing; otherwise
one that says nothing leaves the text unjudged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from relay.consultant import Answer, Consultant, Reason, Unjudged
from relay.labels import LabelPolicy, Thresholds, strictest
from relay.metrics import ModerationTally
from relay.moderator import Context
from relay.pure.ruling import Ruling

__all__ = ["Consultant", "Judge", "LabelPolicy", "Reason", "Ruling", "Thresholds", "Unjudged"]

_Heard = tuple[Consultant, Answer, bool]
"""Who said what, and whether it was known without a call."""


class Judge:
    """See the head of this file. `consultants` are one or more.

    in_order: whether one of the moderators wants the windows of a reply one at a time.
    """

    def __init__(self, consultants: Sequence[Consultant], labels: LabelPolicy) -> None:
        self.in_order = any(each.in_order for each in consultants)
        self._consultants = tuple(consultants)
        self._only = consultants[0] if len(consultants) == 1 else None
        self._labels = labels

    async def check(self, show: Callable[[], str], context: Context, tally: ModerationTally) -> Ruling | Unjudged:
        """One window of a reply.

        show: gives the text. Called when there is a slot in the budget of every moderator, in the same turn of the loop
        in which it is sent, because a window grows while it waits; and once more if the only moderator was asked too
        often and the window has to wait again. The places of a mask are in what it gave last.
        """
        shown = _Shown(show)
        if self._only is not None:
            answer = await self._only.ask(shown, context)
            tally.checked += len(shown.text)
            return self._ruling(self._only, answer, False, tally)
        heard = await self._ask_all(shown, context)
        tally.checked += len(shown.text)
        return self._together(heard, tally)

    async def check_text(self, text: str, context: Context, tally: ModerationTally) -> Ruling | Unjudged:
        """One piece of a request: a verdict that is known is not asked for again, one that is asked for is shared."""
        if self._only is not None:
            answer, known = await self._only.ask_text(text, context)
            tally.checked += 0 if known else len(text)
            return self._ruling(self._only, answer, known, tally)
        async with asyncio.TaskGroup() as group:
            asked = [(each, group.create_task(each.ask_text(text, context))) for each in self._consultants]
        heard = [(each, *task.result()) for each, task in asked]
        tally.checked += 0 if all(known for _, _, known in heard) else len(text)
        return self._together(heard, tally)

    @property
    def degraded(self) -> bool:
        """Whether calls to one of the moderators are counted in this process alone, as the store is away."""
        return any(consultant.degraded for consultant in self._consultants)

    async def close(self) -> None:
        """End what is asked for requests and waited for by nobody here."""
        for consultant in self._consultants:
            await consultant.close()

    async def _ask_all(self, show: Callable[[], str], context: Context) -> list[_Heard]:
        ready = await self._slots(context.exchange)
        try:
            text = show() if ready else ""
        except BaseException:
            for consultant in ready:
                consultant.budget.give_back()
            raise
        async with asyncio.TaskGroup() as group:
            asked = {each: group.create_task(each.ask(lambda: text, context, slot=True)) for each in ready}
        return [
            (each, asked[each].result() if each in asked else Unjudged("breaker_open", each.name), False)
            for each in self._consultants
        ]

    async def _slots(self, stream: str) -> list[Consultant]:
        """Those for whom there is a slot: all whose breaker is closed.

        Taken in the same order by all, so that no two can wait for each other; and it waits by turns for the first one
        only. For the others it then goes before those who have nothing yet, since what it has is kept from them.
        """
        ready: list[Consultant] = []
        try:
            for consultant in self._consultants:
                if not consultant.available:
                    continue
                if consultant.budget.try_take() or await self._wait(consultant, stream, ready):
                    ready.append(consultant)
        except BaseException:
            for consultant in ready:
                consultant.budget.give_back()
            raise
        return ready

    async def _wait(self, consultant: Consultant, stream: str, ready: Sequence[Consultant]) -> bool:
        """Wait for a slot while the slots of others are held. False if the breaker has opened meanwhile."""
        for each in ready:
            each.budget.hold()
        try:
            return await consultant.budget.take(stream, again=bool(ready))
        finally:
            for each in ready:
                each.budget.let_go()

    def _together(self, heard: Sequence[_Heard], tally: ModerationTally) -> Ruling | Unjudged:
        found = [self._ruling(*each, tally) for each in heard]
        ruling = strictest([each for each in found if isinstance(each, Ruling)])
        if ruling.action != "block":
            for each in found:
                if isinstance(each, Unjudged):
                    return replace(each, heard=ruling) if ruling.action != "pass" else each
        return ruling

    def _ruling(self, consultant: Consultant, answer: Answer, known: bool, tally: ModerationTally) -> Ruling | Unjudged:
        """What one moderator's answer means; counted."""
        if isinstance(answer, Unjudged):
            outcome = consultant.name, answer.reason
            tally.checks[outcome] = tally.checks.get(outcome, 0) + 1
            return answer
        ruling = self._labels.rule(answer, consultant.name)
        counted = consultant.name, "cached" if known else ruling.action
        tally.checks[counted] = tally.checks.get(counted, 0) + 1
        return ruling


class _Shown:
    """Shows, and remembers what."""

    __slots__ = ("_show", "text")

    def __init__(self, show: Callable[[], str]) -> None:
        self._show = show
        self.text = ""

    def __call__(self) -> str:
        self.text = self._show()
        return self.text
