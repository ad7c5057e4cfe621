"""An answer of the service as a verdict. Pure.

Every entry of DetailResults counts: the label at the top is that of the highest priority, which need not be the strictest.
Places count characters (code points), half-open. What is told of a finding's places is either all or nothing: if one of
several hits has no place and no keyword to look for, the finding has none, and a mask of it blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from tencentcloud.tms.v20201229 import models

from relay.moderator import STRICTNESS, Action, Finding, Span, Verdict

SUGGESTIONS: Final[dict[str, Action]] = {"Pass": "pass", "Review": "review", "Block": "block"}
# Those that the service's pages name. It may say others, which policies can name as well.
LABELS: Final = frozenset(
    "Normal Polity Porn Sexy Illegal Abuse Terror Ad Custom Teenager Value RiskAccount RiskIP RiskIMEI".split()
)
_MALICIOUS: Final = 2  # RiskDetails.Level; 1 is a suspicion


def verdict(response: models.TextModerationResponse, text: str, unknown: Callable[[str], None]) -> Verdict:
    """The verdict on `text`. A suggestion that is none blocks, and is told to `unknown`.

    Raises ValueError, TypeError or AttributeError for an answer that is none.
    """
    if not isinstance(response.Suggestion, str) or not response.Suggestion:
        raise ValueError("no suggestion")
    action = _action(response.Suggestion, unknown)
    label, score = _label(response.Label), _score(response.Score, action)
    findings = [_finding(detail, text, unknown) for detail in response.DetailResults or ()]
    findings += [
        Finding("review", _label(risk.Label)) for risk in response.RiskDetails or () if risk.Level == _MALICIOUS
    ]
    places: dict[Span, None] = {}
    for snippet in response.HitSnippetInfos or ():
        _snippet(places, snippet, text)
    if places:
        findings = _placed(findings, Finding(action, label, score), places)
    return Verdict(action, label, score, tuple(findings), str(response.RequestId or "")[:100])


def joined(first: Verdict, second: Verdict, start: int) -> Verdict:
    """The verdict on a text by those on two parts of it, of which the second begins at `start`."""
    stricter = max(first, second, key=lambda each: STRICTNESS[each.action])
    findings = [
        Finding(first.action, first.label, first.score),
        *first.findings,
        Finding(second.action, second.label, second.score),
        *(
            replace(found, spans=tuple(_shifted(span, start) for span in found.spans)) if found.spans else found
            for found in second.findings
        ),
    ]
    return replace(stricter, findings=tuple(findings))


def _finding(detail: models.DetailResults, text: str, unknown: Callable[[str], None]) -> Finding:
    action = _action(detail.Suggestion, unknown)
    places = _spans(detail, text) if detail.HitInfos or detail.HitSnippetInfos or detail.Keywords else ()
    return Finding(action, _label(detail.Label), _score(detail.Score, action), places)


def _placed(findings: list[Finding], top: Finding, places: dict[Span, None]) -> list[Finding]:
    """The findings, those of the top level's label with its places too; one more if there is none."""
    if not any(found.label == top.label for found in findings):
        return [*findings, replace(top, spans=tuple(places))]
    return [
        replace(found, spans=tuple(dict.fromkeys((*found.spans, *places)))) if found.label == top.label else found
        for found in findings
    ]


def _spans(detail: models.DetailResults, text: str) -> tuple[Span, ...]:
    places: dict[Span, None] = {}
    for hit in detail.HitInfos or ():
        if not _hit(places, hit.Keyword or "", _valid(hit.Positions, text)):
            return ()
    for snippet in detail.HitSnippetInfos or ():
        if not _snippet(places, snippet, text):
            return ()
    told = {span.keyword for span in places}
    for keyword in detail.Keywords or ():
        if keyword not in told:
            _hit(places, keyword, None)
    return tuple(places)


def _hit(places: dict[Span, None], keyword: str, valid: list[tuple[int, int]] | None) -> bool:
    """Add the places of a hit; whether it has any. Raises TypeError for a keyword that is no text."""
    if not isinstance(keyword, str):
        raise TypeError(type(keyword))
    if not valid and not keyword:
        return False
    if valid:
        places.update((Span(start, end, keyword), None) for start, end in valid)
    else:
        # It is not told where it stands. It does not stand here, so it is looked for.
        places[Span(0, 0, keyword)] = None
    return True


def _snippet(places: dict[Span, None], snippet: models.HitSnippetInfo, text: str) -> bool:
    """The same for a snippet, which may stand in pieces: then each piece is a place."""
    words, valid = snippet.Snippet or "", _valid(snippet.Positions, text)
    if valid and len(valid) > 1 and words == "".join(text[start:end] for start, end in valid):
        places.update((Span(start, end, text[start:end]), None) for start, end in valid)
        return True
    return _hit(places, words, valid)


def _valid(positions: Iterable[Any] | None, text: str) -> list[tuple[int, int]] | None:
    """The positions; None if one of them cannot be."""
    valid = [(place.Start, place.End) for place in positions or ()]
    if all(type(start) is type(end) is int and 0 <= start < end <= len(text) for start, end in valid):
        return valid
    return None


def _shifted(span: Span, start: int) -> Span:
    return Span(span.start + start, span.end + start, span.keyword) if span.end else span


def _action(suggestion: object, unknown: Callable[[str], None]) -> Action:
    action = SUGGESTIONS.get(suggestion) if isinstance(suggestion, str) else None
    if action is None:
        unknown(str(suggestion)[:64])
        return "block"
    return action


def _label(label: object) -> str:
    return label[:64] if isinstance(label, str) else ""


def _score(score: object, action: Action) -> int:
    """0 to 100. One that is missing must not let through by a policy what the service would not."""
    if isinstance(score, int | float) and 0 <= score <= 100:
        return int(score)
    return 0 if action == "pass" else 100
