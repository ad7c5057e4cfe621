"""A moderator that follows a script: what a service does on its good and on its bad days.

    moderator = ScriptedModerator(script=[Unavailable("gone"), After(0.2, PASS), NEVER])

answers its first call with a failure, the second after a while, and no other one.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import field
from typing import Any, Final, NamedTuple

from relay.moderator import PASS, Context, Moderator, Verdict


class After(NamedTuple):
    """A step that takes so many seconds."""

    seconds: float
    step: Any = PASS


NEVER: Final = After(math.inf)


class ScriptedModerator(Moderator):
    """Answers each call by the next step, and every further one by the last.

    A step is a verdict, an exception, an `After`, or a function of the text that gives one of these.
    shown, at: the texts of all calls, and the loop's times when they came. given_up: how many were cancelled.
    """

    script: Any = (PASS,)
    calls_per_second: float = math.inf
    in_order: bool = False

    shown: list[str] = field(init=False)
    at: list[float] = field(init=False)
    contexts: list[Context] = field(init=False)
    given_up: int = field(init=False)

    def __post_init__(self) -> None:
        self.shown, self.at, self.contexts, self.given_up = [], [], [], 0

    async def check(self, text: str, context: Context) -> Verdict:
        step = self.script[min(len(self.shown), len(self.script) - 1)]
        self.shown.append(text)
        self.at.append(asyncio.get_running_loop().time())
        self.contexts.append(context)
        try:
            return await self._follow(step, text)
        except asyncio.CancelledError:
            self.given_up += 1
            raise

    async def _follow(self, step: Any, text: str) -> Verdict:
        if callable(step):
            step = step(text)
        if isinstance(step, After):
            if math.isinf(step.seconds):
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(step.seconds)
            return await self._follow(step.step, text)
        if isinstance(step, BaseException):
            raise step
        verdict: Verdict = step
        return verdict
