"""The page the author of a moderator reads: who looks at text and says whether it may be shown.

A moderator that has to be asked (a service) writes `check`. The relay hands it windows of a reply and pieces of a
request, with a deadline, and sees to it that nothing leaves before the verdict.

A moderator that knows exactly what it looks for (a word list) also writes `scanner` and `find`: it then reads replies as
they come, adds no wait but for the head of a phrase, and is never asked about windows.

Texts are canonical for scanners (`relay.pure.fold`), as written for `check`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from relay.options import Options
from relay.pure.fold import fold
from relay.pure.ruling import STRICTNESS, Action, Span
from relay.pure.window import Hit, Scanner

if TYPE_CHECKING:
    from relay.plugin import Services

__all__ = [
    "PASS",
    "STRICTNESS",
    "Action",
    "Context",
    "Finding",
    "Moderator",
    "NoVerdict",
    "RateLimited",
    "ScanningModerator",
    "Span",
    "Unauthorized",
    "Unavailable",
    "Verdict",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """One of several things that a moderator has found. Raises ValueError for an unknown action.

    score: from 0 to 100; None if it gives none: then no threshold of the operator's replaces its action.
    spans: where it stands. A mask whose place is not told blocks.
    """

    action: Action
    label: str = ""
    score: int | None = None
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        _known(self.action)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a moderator says about one text. Raises ValueError for an action that is none. score: as in `Finding`.

    label: the name of what was found, never a part of the text: it stands in the log, in events and in metrics.
    findings: what it has found one by one, if it tells; the strictest of them and of `action` counts.
    reference: the moderator's own name of this verdict, for the log and for support.
    """

    action: Action
    label: str = ""
    score: int | None = None
    findings: tuple[Finding, ...] = ()
    reference: str = ""

    def __post_init__(self) -> None:
        _known(self.action)


def _known(action: str) -> None:
    if action not in STRICTNESS:
        raise ValueError(f"unknown action {action!r}; one of {', '.join(STRICTNESS)}")


PASS = Verdict("pass")


class NoVerdict(Exception):
    """A moderator cannot say anything about a text. Base of what `check` raises if it knows why; of no use by itself.

    The message is for the log: it holds no text and no secret. reference: as in `Verdict`.
    """

    def __init__(self, message: str, *, reference: str = "") -> None:
        super().__init__(message)
        self.reference = reference


class RateLimited(NoVerdict):
    """Too many calls. No failure: the same text is shown again when there is room."""


class Unavailable(NoVerdict):
    """It may well answer when it is asked again at once: a broken connection, a fault inside the service."""


class Unauthorized(NoVerdict):
    """It will not answer before somebody has changed something: credentials, a bill, a clock. Nobody asks meanwhile."""


@dataclass(frozen=True, slots=True)
class Context:
    """Where a text stands.

    exchange: the request id. direction: "request" or "response". surface: `content`, `tool_calls.0`, …, of a choice.
    caller: the name of the key that asked, "" without one. user: as the request names its user. headers: the request's,
    without those that carry credentials.
    """

    exchange: str
    direction: Literal["request", "response"]
    surface: str
    choice: int | None = None
    caller: str = ""
    user: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Moderator(Options, ABC):
    """Base of moderators that are asked. Its fields are its options.

    known_as: its name in logs and metrics; of several of a kind in one chain the later ones are numbered. The class's name
    in lower case, unless the class says otherwise; a registered one is known as it is registered.
    labels: those that it gives, as far as metrics should tell them apart.
    """

    known_as: ClassVar[str]
    labels: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "known_as" not in vars(cls):
            cls.known_as = cls.__name__.lower()

    @property
    def calls_per_second(self) -> float:
        """How often it may be asked in any second, by all processes together. An option of that name takes its place."""
        return math.inf

    @property
    def account(self) -> str:
        """On whose account it is asked: moderators with the same one share `calls_per_second`, over all processes.

        It is hashed before it leaves the process.
        """
        return f"{self.known_as} {self.calls_per_second:g}"

    @property
    def in_order(self) -> bool:
        """Whether it remembers what it was shown: then the pieces of a text are shown one after the other."""
        return False

    @property
    def cacheable(self) -> bool:
        """Whether its verdict depends on the text alone: then it is kept for a while, and for whoever asks."""
        return not self.in_order

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        """Open before the `yield`, close after it."""
        yield

    @abstractmethod
    async def check(self, text: str, context: Context) -> Verdict:
        """Look at one text of at most 10,000 characters.

        It is asked again, and cancelled when its time is over, by the relay: no retries and no time-outs in here. What
        it raises counts as no verdict; `RateLimited`, `Unavailable` and `Unauthorized` say what to do about that.
        """


class ScanningModerator(Moderator):
    """Base of moderators that read along."""

    @abstractmethod
    def scanner(self) -> Scanner:
        """A reader for one surface of one choice."""

    @abstractmethod
    def find(self, text: str) -> Sequence[Hit]:
        """All that stands in a canonical text that is there as a whole."""

    def recall(self, text: str) -> Sequence[Hit]:
        """The same, for texts that are sent again and again, as those of requests are: it may be remembered."""
        return self.find(text)

    async def check(self, text: str, context: Context) -> Verdict:
        strictest = max(self.find(fold(text)), key=lambda hit: STRICTNESS[hit.action], default=None)
        return Verdict(strictest.action, strictest.label, 100) if strictest is not None else PASS
