"""What was found, as it is told: a line in the log, a count, and what other plugins may know. Never the text, nor the name of a field that may be one."""

from __future__ import annotations

from relay.exchange import VIOLATIONS, Exchange
from relay.log import Logger
from relay.metrics import ModerationTally
from relay.pure.places import known
from relay.pure.tally import MAX_VIOLATIONS, Violation


def tell(violation: Violation, ex: Exchange, log: Logger, tally: ModerationTally) -> None:
    violation = violation._replace(surface=known(violation.surface))
    choice, place, position, label, moderator, action, score, reference, direction = violation
    tally.violations[moderator, label] = tally.violations.get((moderator, label), 0) + 1
    if VIOLATIONS not in ex:
        ex[VIOLATIONS] = []
    if len(ex[VIOLATIONS]) < MAX_VIOLATIONS:
        ex[VIOLATIONS].append(violation)
    log.info(
        "violation",
        request_id=ex.id,
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
