"""What was found, as it is told to operators: a line in the log and a count. Never the text."""

from __future__ import annotations

from typing import Literal

from relay.log import Logger
from relay.metrics import ModerationTally
from relay.pure.tally import Violation


def tell(
    violation: Violation,
    request_id: str,
    direction: Literal["request", "response"],
    log: Logger,
    tally: ModerationTally,
) -> None:
    choice, place, position, label, moderator, action, score, reference = violation
    tally.violations[moderator, label] = tally.violations.get((moderator, label), 0) + 1
    log.info(
        "violation",
        request_id=request_id,
        direction=direction,
        choice=choice,
        place=place,
        position=position,
        label=label,
        score=score,
        moderator=moderator,
        reference=reference or None,
        action=action,
    )
