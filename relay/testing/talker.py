"""A model that talks: an upstream's replies as they come in a day, made of chance, for a relay to be looked at with.

Most replies are plain prose. A share of them holds a phrase that is not wanted, cut across chunks; others break off, or
are refused. The same seed gives the same replies in the same order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from relay.testing import frames
from relay.testing.script import Abort, Head, Pause, Script, Send, Step, refused, whole
from relay.testing.upstream import Request

SENTENCES = (
    "The ferry leaves at nine and comes back before dark. ",
    "Nobody had thought of bringing a map, so they asked the miller. ",
    "A good soup needs an hour, a slow fire and a little salt. ",
    "What the gauge shows is an average of the last ten minutes. ",
    "She counted the steps twice and wrote both numbers down. ",
    "Between the two hills there is a road that is on no list. ",
    "今天天气很好,我们去公园散步,然后在湖边吃午饭。",
    "图书馆三楼有一间很安静的阅览室,窗外是一排银杏。",
    "先把水烧开,再放面条,最后加一点盐和葱花。",
    "这条河从北边的山里流出来,绕过三个村子才到海边。",
)
CHUNK_CHARS = 4
# Of the logarithm of the time to the first chunk: one in a hundred takes four times the median.
SPREAD = 0.6


@dataclass(slots=True, kw_only=True)
class Talker:
    """The `script` of a `ScriptedUpstream`.

    phrases: what is said now and then; phrase_share: in so many replies of 1. break_share: of 1, are reset in the middle.
    refuse_share: of 1, are answered with a 503. chars: the shortest and the longest reply, without a phrase, and up to a
    sentence more. first_ms: to the first chunk, the median. pace_ms: between two chunks.
    """

    phrases: Sequence[str] = ()
    phrase_share: float = 0.0
    break_share: float = 0.0
    refuse_share: float = 0.0
    chars: tuple[int, int] = (150, 700)
    first_ms: float = 250.0
    pace_ms: float = 50.0
    seed: int = 0
    _chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)  # noqa: S311 - replies that can be had again

    def __call__(self, request: Request) -> Script:
        chance = self._chance
        if chance.random() < self.refuse_share:
            return refused(503)
        asked = request.json
        asked = asked if isinstance(asked, dict) else {}
        model = str(asked.get("model"))
        text = self.reply()
        tokens = (len(request.body) // CHUNK_CHARS, -(-len(text) // CHUNK_CHARS))
        first_s = self.first_ms / 1000 * math.exp(chance.gauss(0, SPREAD))
        breaks = chance.random() < self.break_share
        if not request.streams:
            body = whole(frames.body(text, tokens=tokens, model=model))
            return Script(Abort()) if breaks else Script(Pause(first_s), body)
        pieces = [text[start : start + CHUNK_CHARS] for start in range(0, len(text), CHUNK_CHARS)]
        counted = (asked.get("stream_options") or {}).get("include_usage") is True
        said = frames.stream(pieces, tokens=tokens if counted else None, model=model)
        if breaks:
            said = said[: 1 + len(pieces) // 2]
        steps: list[Step] = [Pause(first_s), Head()]
        for number, frame in enumerate(said):
            if number:
                steps.append(Pause(self.pace_ms / 1000))
            steps.append(Send(frame))
        return Script(*steps, *([Abort()] if breaks else []))

    def reply(self) -> str:
        """What is said this time."""
        chance = self._chance
        length = chance.randint(*self.chars)
        said: list[str] = []
        while sum(map(len, said)) < length:
            said.append(chance.choice(SENTENCES))
        if self.phrases and chance.random() < self.phrase_share:
            said.insert(chance.randint(0, len(said)), f"{chance.choice(self.phrases)}. ")
        return "".join(said)
