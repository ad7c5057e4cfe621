"""The shape of OpenAI's moderation API (POST /v1/moderations), which other services speak too. Pure."""

from __future__ import annotations

from typing import Annotated, Final

import orjson
from msgspec import Meta, Struct

from relay.moderator import Finding, Verdict
from relay_plugins.webhook.answer import name, read

CATEGORIES: Final = frozenset(
    "harassment harassment/threatening hate hate/threatening illicit illicit/violent self-harm self-harm/intent "
    "self-harm/instructions sexual sexual/minors violence violence/graphic".split()
)


class _Result(Struct, frozen=True):
    """flagged: the service's own summary. A category, or its score, that it does not give for this model is null."""

    flagged: bool
    categories: dict[str, bool | None]
    category_scores: dict[str, float | None]


class _Answer(Struct, frozen=True):
    results: Annotated[tuple[_Result, ...], Meta(min_length=1)]
    id: str = ""


def ask(text: str, model: str) -> bytes:
    """The request's body."""
    return orjson.dumps({"model": model, "input": text})


def verdict(data: bytes) -> Verdict:
    """The verdict in the answer's bytes. Raises NoVerdict.

    Every category is a finding, so that a threshold of the operator's also finds what the service does not flag. The label
    of the whole is that of the flagged category with the highest score.
    """
    answer = read(data, _Answer)
    findings = [
        Finding("block" if named else "pass", name(category), _score(result.category_scores.get(category)))
        for result in answer.results
        for category, named in result.categories.items()
    ]
    findings += [
        Finding("pass", name(category), _score(score))
        for result in answer.results
        for category, score in result.category_scores.items()
        if category not in result.categories
    ]
    flagged = any(result.flagged for result in answer.results)
    top = max((each for each in findings if each.action == "block"), key=lambda each: each.score or 0, default=None)
    if top is None:
        return Verdict("block" if flagged else "pass", findings=tuple(findings), reference=name(answer.id))
    return Verdict("block", top.label, top.score, tuple(findings), name(answer.id))


def _score(share: float | None) -> int | None:
    """From 0 … 1 to 0 … 100."""
    return None if share is None else round(100 * min(1.0, max(0.0, share)))
