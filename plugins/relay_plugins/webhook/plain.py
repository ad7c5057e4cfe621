"""The relay's own shape: `{"text": …}` out, `{"action": …}` in. docs/moderation.md shows both. Pure."""

from __future__ import annotations

from typing import Annotated

import orjson
from msgspec import Meta, Struct

from relay.moderator import Action, Context, Finding, Span, Verdict
from relay_plugins.webhook.answer import name, read

Score = Annotated[int, Meta(ge=0, le=100)]
Place = tuple[int, int]


class _Found(Struct, frozen=True, forbid_unknown_fields=True):
    action: Action
    label: str = ""
    score: Score | None = None
    spans: tuple[Place, ...] = ()


class _Answer(_Found, frozen=True, forbid_unknown_fields=True):
    findings: tuple[_Found, ...] = ()
    reference: str = ""


def ask(text: str, context: Context, *, who: bool) -> bytes:
    """The request's body. who: tell who asks."""
    asked: dict[str, object] = {
        "text": text,
        "direction": context.direction,
        "surface": context.surface,
        "request_id": context.exchange,
    }
    if who:
        asked["caller"], asked["user"] = context.caller, context.user.encode("utf-8", "replace").decode()
    return orjson.dumps(asked)


def verdict(data: bytes, text: str) -> Verdict:
    """The verdict on `text` in the answer's bytes. Raises NoVerdict."""
    answer = read(data, _Answer)
    findings = tuple(_finding(each, text) for each in answer.findings)
    if answer.spans:
        findings = (_finding(answer, text), *findings)
    return Verdict(answer.action, name(answer.label), answer.score, findings, name(answer.reference))


def _finding(found: _Found, text: str) -> Finding:
    # One place that is not in the text makes the others doubtful: then there is none, and a mask blocks.
    sound = all(0 <= start < end <= len(text) for start, end in found.spans)
    spans = tuple(Span(start, end) for start, end in found.spans) if sound else ()
    return Finding(found.action, name(found.label), found.score, spans)
