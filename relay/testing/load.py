"""Callers of a relay as they come in a day: at a pace, never too many at once, and not all of them well behaved.

What a caller does is drawn from `WAYS`; when they come is chance around a rate that rises and falls by half within
`WAVE_S`. There is no queue: who would be one too many does not come, and is counted. So a relay that is slow or away is
asked no more than one that is well, and what is measured at it is not this side's waiting.

This is for a demonstration and no benchmark: see `bench/` for one.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import aiohttp

from relay.testing.talker import SENTENCES

Way = Literal["streams", "whole", "leaves", "forbidden", "stranger", "nonsense"]

# How many of a hundred: read a stream to its end; ask for a reply in one piece; leave in the middle of a stream; ask with a
# phrase that is not wanted; have no key; ask for what cannot be.
WAYS: Final[Mapping[Way, int]] = {
    "streams": 80,
    "whole": 10,
    "leaves": 5,
    "forbidden": 2,
    "stranger": 1,
    "nonsense": 2,
}
WAVE_S: Final = 600.0
MOST_TURNS: Final = 12
# A caller that leaves has read so many chunks at most.
LEAVES_AFTER: Final = 30


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: its body, its key, and after how many chunks its caller leaves; None: at the end."""

    body: bytes
    key: str
    leaves_after: int | None = None


@dataclass(slots=True, kw_only=True)
class Callers:
    """Whom `Load` sends. phrases: what the ones with the way "forbidden" say."""

    keys: Sequence[str]
    models: Sequence[str]
    phrases: Sequence[str] = ()
    seed: int = 0
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)  # noqa: S311 - callers that can be had again

    def next(self) -> Ask:
        """The next of them."""
        (way,) = self.chance.choices(tuple(WAYS), tuple(WAYS.values()))
        return self.ask(way)

    def ask(self, way: Way) -> Ask:
        chance = self.chance
        turns = [
            {"role": ("user", "assistant")[turn % 2], "content": chance.choice(SENTENCES)}
            for turn in range(2 * chance.randint(0, MOST_TURNS // 2) + 1)
        ]
        if way == "forbidden" and self.phrases:
            turns[-1]["content"] += chance.choice(self.phrases)
        fields: dict[str, object] = {"model": chance.choice(self.models), "messages": turns, "stream": way != "whole"}
        if way == "nonsense":
            fields["temperature"] = 99
        key = "sk-nobody" if way == "stranger" else chance.choice(self.keys)
        leaves_after = chance.randint(0, LEAVES_AFTER) if way == "leaves" else None
        return Ask(json.dumps(fields, ensure_ascii=False).encode(), key, leaves_after)


@dataclass(slots=True, kw_only=True)
class Load:
    """Sends callers to `url`, which ends with /v1.

    rate: callers a second, on average. streams: at most so many at once. timeout_s: for one of them, from beginning to end.
    ended: how they ended, by status, or `left`, `unreachable`, `broken` (in the middle) or `skipped` (there were too many).
    """

    url: str
    callers: Callers
    rate: float = 2.0
    streams: int = 50
    timeout_s: float = 120.0
    ended: Counter[str] = field(default_factory=Counter)

    async def run(self, requests: int | None = None, *, on_minute: Callable[[], None] = lambda: None) -> None:
        """Until so many callers have come and gone; None: until cancelled. `on_minute` is called about once a minute."""
        loop = asyncio.get_running_loop()
        chance = random.Random(self.callers.seed)  # noqa: S311
        begun = told = loop.time()
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self.streams),
                timeout=aiohttp.ClientTimeout(total=self.timeout_s),
                trust_env=False,
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            open_asks: set[asyncio.Task[None]] = set()
            came = 0
            while requests is None or came < requests:
                wave = 1 + math.sin(2 * math.pi * (loop.time() - begun) / WAVE_S) / 2
                await asyncio.sleep(chance.expovariate(self.rate * wave))
                came += 1
                if len(open_asks) >= self.streams:
                    self.ended["skipped"] += 1
                else:
                    task = group.create_task(self._send(session, self.callers.next()))
                    open_asks.add(task)
                    task.add_done_callback(open_asks.discard)
                if loop.time() - told >= 60:
                    told = loop.time()
                    on_minute()

    async def _send(self, session: aiohttp.ClientSession, ask: Ask) -> None:
        headers = {"Authorization": f"Bearer {ask.key}", "Content-Type": "application/json"}
        end = "unreachable"
        try:
            async with session.post(f"{self.url}/chat/completions", data=ask.body, headers=headers) as response:
                end = "broken"
                read = 0
                async for _ in response.content.iter_any():
                    read += 1
                    if ask.leaves_after is not None and read > ask.leaves_after:
                        response.close()
                        end = "left"
                        return
                end = str(response.status)
        except (aiohttp.ClientError, TimeoutError):
            pass
        finally:
            self.ended[end] += 1
