"""Upstreams whose mood can be changed while they serve."""

from contextlib import asynccontextmanager

from relay.testing import (
    Abort,
    Hang,
    Head,
    Pause,
    Script,
    ScriptedUpstream,
    Send,
    frames,
    refused,
    streamed,
    whole,
)

LEXICON = "forbidden fruit"
MASKED, REVIEWED, BLOCKED = "maskedword", "reviewedword", "blockedword"
SINS = {"forbidden": LEXICON, "masked": MASKED, "reviewed": REVIEWED, "blocked": BLOCKED}
"""What moderators find, under names that they do not."""

PACE_S = 0.02
SLOW_S = 2.7
"""Longer than objectives allow, and than an upstream may be slower than its like."""

HELLO = ("Hello, ", "this is ", "what a model ", "says when ", "all is well ", "with it and ", "with us. ")
OPAQUE = "QUJD" * 100
"""What is no text."""
TOKENS = (20, 30)
HUGE = (20, 50_000_000)
"""What no balance has."""


class Upstream:
    """One, on a port of its own, which it keeps while it is down.

    mood: how all replies go. A prompt may ask for one of its own kind: `utter SIN` of those in `SINS`, `nothing`, `opaque`, `at-length`, `slowly`,
    or `huge` in what it is said to have cost.
    """

    def __init__(self):
        self.mood = "well"
        self._port = 0
        self._server = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}/v1"

    async def up(self):
        self._server = await ScriptedUpstream(self._script, port=self._port, keep_requests=1).__aenter__()
        self._port = self._server.port

    async def down(self):
        if self._server is not None:
            server, self._server = self._server, None
            await server.__aexit__(None, None, None)

    def _script(self, request):
        asked = request.json
        word, _, rest = asked["messages"][-1]["content"].partition(" ")
        texts, pace_s = HELLO, PACE_S
        if word == "utter":
            texts = (*HELLO, *(f"{part} " for part in SINS[rest.partition(" ")[0]].split()), *HELLO)
        elif word == "nothing":
            texts = ("",)
        elif word == "at-length":
            texts = HELLO * 12
        elif word == "slowly":
            texts, pace_s = HELLO * 8, 0.1
        tokens = HUGE if word == "huge" else TOKENS
        if not asked.get("stream"):
            return _unwell(self.mood, [], whole(frames.body("".join(texts), tokens=tokens)))
        told = tokens if asked.get("stream_options", {}).get("include_usage") else None
        said = frames.stream(texts, tokens=told)
        if word == "opaque":
            said.insert(1, frames.delta({"blob": OPAQUE}))
        return _unwell(self.mood, said, streamed(said, pace_s))


def _unwell(mood, said, well):
    begun = (Head(), Send(b"".join(said[:3])))
    match mood:
        case "well":
            return well
        case "slow":
            return Script(Pause(SLOW_S), well)
        case "busy":
            return refused(429)
        case "failing":
            return refused(500)
        case "breaking off" if said:
            return Script(*begun, Pause(PACE_S), Abort())
        case "breaking off":
            return Script(Abort())
        case "reporting" if said:
            return Script(*begun, Send(frames.error()))
        case "reporting":
            return refused(500)
        case "raving" if said:
            return Script(*begun, Send(frames.data("this is no JSON")))
        case "raving":
            return whole(b"this is no JSON")
        case "hanging":
            return Script(*begun, Hang()) if said else Script(Hang())
    raise ValueError(mood)


@asynccontextmanager
async def upstreams(count):
    """So many, all up."""
    made = [Upstream() for _ in range(count)]
    try:
        for each in made:
            await each.up()
        yield made
    finally:
        for each in made:
            await each.down()
