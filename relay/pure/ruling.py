"""What a moderator can want done with a text, in the words that all parts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Action = Literal["pass", "review", "mask", "block"]
STRICTNESS: Final[dict[Action, int]] = {"pass": 0, "review": 1, "mask": 2, "block": 3}


class Span(NamedTuple):
    """Where something stands: half-open, in characters of the text that was shown.

    keyword: what is said to stand there; "" if the moderator does not say. If it does not stand there, it is looked for:
    `Span(0, 0, keyword)` is a keyword whose place is not told.
    """

    start: int
    end: int
    keyword: str = ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What is to be done with a text that was shown, by the strictest of all moderators.

    masks: where, if the action is "mask". reference: the moderator's own name of its verdict, for the log.
    """

    action: Action
    label: str = ""
    score: int = 0
    moderator: str = ""
    reference: str = ""
    masks: tuple[Span, ...] = ()


NOTHING_FOUND: Final = Ruling("pass")
