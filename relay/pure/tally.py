"""What became of the text of one reply, counted while it passes the guard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from relay.pure.ruling import Action
from relay.pure.window import Window

# More than this says nothing new in a log; only a mode that does not cut can find more.
MAX_VIOLATIONS: Final = 100


class Violation(NamedTuple):
    """What was found in a request or its reply: for the log. Never the text.

    choice: None where there is none, as in a request. surface: as in `relay.moderator.Context`. reference: the moderator's own
    name of its verdict.
    """

    choice: int | None
    surface: str
    position: int  # canonical characters of the surface before it
    label: str
    moderator: str
    action: Action
    score: int = 0
    reference: str = ""
    direction: Literal["request", "response"] = "response"


@dataclass(slots=True)
class Tally:
    """Characters (originals), flushed into the metrics when the reply has ended."""

    came: int = 0
    released: int = 0
    blocked: int = 0  # in what was found; the rest of what came and was not released was only near it
    late: int = 0  # text for a choice that had ended, never forwarded and not counted above
    unread: dict[str, int] = field(default_factory=dict)  # by the option that lets it leave
    longest_hold_s: float = 0.0  # how long a frame that was released had waited
    first_hold_s: float | None = None  # how long the first text that was released had waited
    violations: list[Violation] = field(default_factory=list)  # the first MAX_VIOLATIONS of them
    _unjudged: list[tuple[Window, str]] = field(default_factory=list)

    def found(self, violation: Violation) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(violation)

    def unjudged(self, window: Window, reason: str) -> None:
        """A window may leave although nobody has judged it."""
        self._unjudged.append((window, reason))

    def unverified(self) -> dict[str, int]:
        """Characters that have left without a verdict, by reason. To be asked when nothing more will leave."""
        if not (self.unread or self._unjudged):
            return {}
        sums = dict(self.unread)
        for window, reason in self._unjudged:
            left = window.originals
            if window.run.stopped:  # by a violation behind it, so that not all of it has left
                left = window.originals_to(max(window.fresh, min(window.end, window.run.reached)))
            sums[reason] = sums.get(reason, 0) + left
        return {reason: chars for reason, chars in sums.items() if chars}
