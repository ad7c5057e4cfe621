"""How the fake behaves: every switch it has, each of which may be turned while it runs."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(ge=0, le=1)]
Millis = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]

LABELS: Final = ("Polity", "Terror", "Porn", "Illegal", "Abuse", "Ad", "Teenager", "Value")


class Word(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A word that is found wherever it stands, exactly as written, and what the service says of it."""

    word: Annotated[str, Meta(min_length=1)]
    label: str = "Abuse"
    suggestion: Literal["Block", "Review", "Pass"] = "Block"
    score: Annotated[int, Meta(ge=0, le=100)] = 100
    sub_label: str = ""


class Settings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The switches. An unknown one, or one of a wrong type, is a msgspec.ValidationError (see `changed`).

    words: what is found. priority: which label the top level names, the first of these that was found; a label that is
    not here comes last. It is no order of strictness: the top level may say Review while a detail says Block.
    details: "all": an entry for every label of `priority`, most of them Pass, as the service does; "hits": only those
    that were found, null if none was.
    positions: what is told of where a word stands. "all"; "snippets": in HitSnippetInfos only; "keywords": the words
    without their places; "none": as a model does it, a score and nothing else.
    position_shift: how far the positions are off.
    max_chars: of a text, else ErrTextContentLen. calls_per_second, aigc_calls_per_second: in one second of the clock,
    else RequestLimitExceeded; 0 for any number.
    p50_ms, p99_ms: of the log-normal time that a verdict takes; 0 for none. seed: of these times and of the errors.
    error_share: how many calls of 1 fail. errors: how, by weight: `http_500`, `http_502`, `http_503`, `http_504`,
    `reset` (the connection), `garbage` (a body that is no JSON), `empty` (an answer without a verdict), or else an error
    code of the service.
    outage: "black_hole": calls are never answered; "refuse": connections are reset when a call comes; "slow": answers
    take `slow_ms`.
    clock_ahead_s: of the fake's clock before this machine's.
    biz_types: the ones there are; null for any. risky_users, risky_ips: come with RiskDetails of level 2.
    keep_calls: how many calls are remembered with their texts.
    """

    words: list[Word] = []
    priority: list[str] = msgspec.field(default_factory=lambda: [*LABELS])
    details: Literal["all", "hits"] = "all"
    positions: Literal["all", "snippets", "keywords", "none"] = "all"
    position_shift: int = 0
    max_chars: Count = 10_000
    calls_per_second: Count = 1000
    aigc_calls_per_second: Count = 50
    p50_ms: Millis = 0
    p99_ms: Millis = 0
    seed: int = 0
    error_share: Share = 0
    errors: dict[str, Annotated[float, Meta(ge=0)]] = msgspec.field(
        default_factory=lambda: {"InternalError.ErrTextTimeOut": 1.0}
    )
    outage: Literal["none", "black_hole", "refuse", "slow"] = "none"
    slow_ms: Millis = 5000
    clock_ahead_s: float = 0
    biz_types: list[str] | None = None
    risky_users: list[str] = []
    risky_ips: list[str] = []
    keep_calls: Count = 0


def changed(settings: Settings, changes: dict[str, object]) -> Settings:
    """The settings with some of them changed. Raises msgspec.ValidationError for what is none."""
    return msgspec.convert({**msgspec.to_builtins(settings), **changes}, Settings, from_attributes=True)
