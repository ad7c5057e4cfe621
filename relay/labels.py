"""The operator's own policy for labels: what a moderator's verdict means here.

A moderator suggests. The policy is applied to the verdict itself and to every finding of it, and the strictest counts:
pass < review < mask < block. A mask needs a place; without one it blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from relay.moderator import Finding, Verdict
from relay.pure.ruling import STRICTNESS, Action, Ruling, Span


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which score, 0 to 100, a label blocks, is masked, is worth a review; 101: never."""

    block: int = 101
    mask: int = 101
    review: int = 101

    def action(self, score: int) -> Action:
        if score >= self.block:
            return "block"
        if score >= self.mask:
            return "mask"
        return "review" if score >= self.review else "pass"


@dataclass(frozen=True, slots=True)
class LabelPolicy:
    """thresholds: by label, in place of what the moderator suggests; a label that is not there keeps the suggestion.

    on_review: what a review means.
    """

    thresholds: Mapping[str, Thresholds] = field(default_factory=dict)
    on_review: Literal["pass", "block"] = "pass"

    def rule(self, verdict: Verdict, moderator: str) -> Ruling:
        """What one moderator's verdict means."""
        whole = self._action(verdict)
        if not verdict.findings:
            # It has said no place.
            action: Action = "block" if whole == "mask" else whole
            return Ruling(action, verdict.label, verdict.score or 0, moderator, verdict.reference)
        action, label, score = whole, verdict.label, verdict.score
        found = [(self._action(finding), finding) for finding in verdict.findings]
        for other, finding in found:
            # The first of the strictest, if possible one that says what it is.
            stricter = STRICTNESS[other] - STRICTNESS[action]
            if stricter > 0 or (stricter == 0 and finding.label and not label):
                action, label, score = other, finding.label, finding.score
        masks = self._masks(whole, verdict.label, found) if action == "mask" else ()
        if masks is None:
            action, masks = "block", ()
        return Ruling(action, label, score or 0, moderator, verdict.reference, masks)

    def _action(self, said: Verdict | Finding) -> Action:
        thresholds = self.thresholds.get(said.label)
        action = said.action if thresholds is None or said.score is None else thresholds.action(said.score)
        return "block" if action == "review" and self.on_review == "block" else action

    def _masks(self, whole: Action, label: str, found: Sequence[tuple[Action, Finding]]) -> tuple[Span, ...] | None:
        """All places to mask; None if something is to be masked that has no place.

        The verdict itself tells none: it has those of the findings with its label. If there is no such finding, and it
        was the moderator's own wish to mask, what it means are the findings that it wants masked.
        """
        masked = [finding for action, finding in found if action == "mask"]
        if not all(finding.spans for finding in masked):
            return None
        if whole == "mask":
            meant = [finding for _, finding in found if finding.label == label]
            if not meant and label not in self.thresholds:
                meant = masked
            if not any(finding.spans for finding in meant):
                return None
            masked += meant
        return _united(finding.spans for finding in masked)


def strictest(rulings: Sequence[Ruling]) -> Ruling:
    """What several moderators' rulings of one text come to. The first of the strictest gives its name and reasons."""
    ruling = max(rulings, key=lambda each: STRICTNESS[each.action], default=Ruling("pass"))
    if ruling.action == "mask" and len(rulings) > 1:
        return replace(ruling, masks=_united(each.masks for each in rulings))
    return ruling


def _united(spans: Iterable[tuple[Span, ...]]) -> tuple[Span, ...]:
    """All of them, each once, in order; they may overlap."""
    return tuple(sorted({span for some in spans for span in some}))
