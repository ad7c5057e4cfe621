"""The page the author of a moderator reads: who looks at text and says whether it may be shown.

A moderator that has to be asked (a service) writes `check`. The relay hands it windows of a reply and pieces of a
request, with a deadline, and sees to it that nothing leaves before the verdict.

A moderator that knows exactly what it looks for (a word list) also writes `scanner` and `find`: it then reads replies as
they come, adds no wait but for the head of a phrase, and is never asked about windows.

Texts are canonical for scanners (`relay.pure.fold`), as written for `check`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from relay.options import Options
from relay.pure.fold import fold
from relay.pure.window import Hit, Scanner

if TYPE_CHECKING:
    from relay.plugin import Services

Action = Literal["pass", "review", "block"]
STRICTNESS: dict[Action, int] = {"pass": 0, "review": 1, "block": 2}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a moderator says about one text. `score` from 0 to 100. Raises ValueError for an action that is none."""

    action: Action
    label: str = ""
    score: int = 0

    def __post_init__(self) -> None:
        if self.action not in STRICTNESS:
            raise ValueError(f"unknown action {self.action!r}; one of {', '.join(STRICTNESS)}")

    @property
    def strictness(self) -> int:
        return STRICTNESS[self.action]


PASS = Verdict("pass")


@dataclass(frozen=True, slots=True)
class Context:
    """Where a text stands.

    exchange: the request id. direction: "request" or "response". surface: `content`, `tool_calls.0`, ….
    """

    exchange: str
    direction: Literal["request", "response"]
    surface: str


class Moderator(Options, ABC):
    """Base of moderators that are asked. Its fields are its options.

    known_as: its name in logs and metrics, which moderators of one class share. The class's name in lower case, unless
    the class says otherwise; a registered one is known as it is registered.
    """

    known_as: ClassVar[str]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "known_as" not in vars(cls):
            cls.known_as = cls.__name__.lower()

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        """Open before the `yield`, close after it."""
        yield

    @abstractmethod
    async def check(self, text: str, context: Context) -> Verdict:
        """Look at one text of at most 10,000 characters. What it raises counts as no verdict."""


class ScanningModerator(Moderator):
    """Base of moderators that read along."""

    @abstractmethod
    def scanner(self) -> Scanner:
        """A reader for one surface of one choice."""

    @abstractmethod
    def find(self, text: str) -> Sequence[Hit]:
        """All that stands in a canonical text that is there as a whole."""

    async def check(self, text: str, context: Context) -> Verdict:
        for hit in self.find(fold(text)):
            if hit.blocks:
                return Verdict("block", hit.label, 100)
        return PASS
