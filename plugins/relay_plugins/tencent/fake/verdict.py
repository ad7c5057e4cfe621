"""The answer of the service: its JSON shapes, with every field that it has, and null where it says null.

The names are those of the SDK's models; what stands in a field that does not matter is what the service's documentation
shows there. Pure.
"""

from __future__ import annotations

from typing import Any, Final

from relay_plugins.tencent.fake.ask import Ask
from relay_plugins.tencent.fake.settings import Settings, Word

_RANK: Final = {"Pass": 0, "Review": 1, "Block": 2}
_LIBRARY: Final = ("2000001", "fake_words")
_CUSTOM, _NO_LIBRARY = 2, 0  # LibType: a list of the account's own; a model
_RISKY: Final = 2  # RiskDetails.Level: malicious

Json = dict[str, Any]


def verdict(ask: Ask, settings: Settings, request_id: str) -> Json:
    """What stands under "Response"."""
    hits: dict[str, list[tuple[Word, list[int]]]] = {}
    for word in settings.words:
        if starts := _starts(ask.text, word.word):
            hits.setdefault(word.label, []).append((word, starts))
    order = _order(settings.priority, hits)
    details = [_detail(label, hits[label], settings) for label in order]
    top = details[0] if details else _nothing("Normal")
    if settings.details == "all":
        details += [_nothing(label) for label in settings.priority if label not in hits]
    return {
        "BizType": ask.biz_type,
        "Suggestion": top["Suggestion"],
        "Label": top["Label"],
        "SubLabel": top["SubLabel"],
        "Score": top["Score"],
        "Keywords": top["Keywords"],
        "DetailResults": details or None,
        "RiskDetails": _risks(ask, settings) or None,
        "Extra": "",
        "DataId": ask.data_id,
        "ContextText": "",
        "SentimentAnalysis": None,
        "HitType": "",
        "SessionId": ask.session_id,
        "HitSnippetInfos": top["HitSnippetInfos"],
        "RequestId": request_id,
    }


def _order(priority: list[str], hits: dict[str, Any]) -> list[str]:
    ranks = {label: rank for rank, label in enumerate(priority)}
    return sorted(hits, key=lambda label: ranks.get(label, len(ranks)))


def _starts(text: str, word: str) -> list[int]:
    """Where a word stands, one after the other and without overlap."""
    starts = []
    start = text.find(word)
    while start >= 0:
        starts.append(start)
        start = text.find(word, start + len(word))
    return starts


def _detail(label: str, hits: list[tuple[Word, list[int]]], settings: Settings) -> Json:
    told = settings.positions
    strictest = max((word for word, _ in hits), key=lambda word: (_RANK[word.suggestion], word.score))
    shift = settings.position_shift

    def positions(word: Word, starts: list[int]) -> list[Json]:
        return [{"Start": start + shift, "End": start + len(word.word) + shift} for start in starts]

    lib_id, lib_name = _LIBRARY if told != "none" else ("", "")
    return {
        "Label": label,
        "Suggestion": strictest.suggestion,
        "Keywords": [] if told == "none" else [word.word for word, _ in hits],
        "Score": max(word.score for word, _ in hits),
        "LibType": _NO_LIBRARY if told == "none" else _CUSTOM,
        "LibId": lib_id,
        "LibName": lib_name,
        "SubLabel": strictest.sub_label,
        "Tags": None,
        "HitInfos": [
            {"Type": "Keyword", "Keyword": word.word, "LibName": lib_name, "Positions": positions(word, starts)}
            for word, starts in hits
        ]
        if told == "all"
        else [],
        "HitSnippetInfos": [
            {"Snippet": word.word, "AtomicName": lib_name, "AtomicId": lib_id, "Positions": [place]}
            for word, starts in hits
            for place in positions(word, starts)
        ]
        if told in ("all", "snippets")
        else None,
    }


def _nothing(label: str) -> Json:
    return {
        "Label": label,
        "Suggestion": "Pass",
        "Keywords": [],
        "Score": 0,
        "LibType": _NO_LIBRARY,
        "LibId": "",
        "LibName": "",
        "SubLabel": "",
        "Tags": None,
        "HitInfos": [],
        "HitSnippetInfos": None,
    }


def _risks(ask: Ask, settings: Settings) -> list[Json]:
    risky = (("RiskAccount", ask.user_id, settings.risky_users), ("RiskIP", ask.ip, settings.risky_ips))
    return [{"Label": label, "Level": _RISKY} for label, value, known in risky if value and value in known]
