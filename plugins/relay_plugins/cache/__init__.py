"""`cache`: a request that was asked before, to the byte, gets the reply that was given then.

What is the same: the body as it would go to the upstream, of the same caller. All of it: `stream` and `stream_options`
change the bytes of the reply; `user`, `metadata` and `store` what an upstream does with it, and `user` is often one who
shall not be told what others have asked. Not what the JSON means but its bytes: numbers beyond 64 bits, 1 and 1.0, keys
in another order are the upstream's to take for the same, and a client writes the same request in the same way.

What is kept: what the upstream said, and what the plugins behind this one have made of it; so the plugins before this one
see a reply that is given again as they saw it the first time, and judge and count it anew. Only a reply that has reached
its client whole: who has to see it finished is asked in `on_end`.

It is kept in this process. Requests that come while the first of them is not answered are all sent on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta
from multidict import istr

from relay.exchange import CALLER, STOPPED_BY, Exchange, Key
from relay.plugin import Plugin, Reply, Sink
from relay.pure.openai import Chunk
from relay.reading import events
from relay_plugins.cache import directives
from relay_plugins.cache.entries import OVERHEAD_BYTES, Entries, Entry
from relay_plugins.cache.recorder import Recorder, Room

# RFC 9211 and RFC 9111, section 5.1.
STATUS: Final = istr("Cache-Status")
AGE: Final = istr("Age")
_CONTROL: Final = istr("Cache-Control")
_TRACES: Final = frozenset(("traceparent", "tracestate"))

# Longer streams are taken apart in a thread: an event, of some 250 bytes, takes 2 µs.
INLINE_BYTES: Final = 131_072


class Cache(Plugin):
    """Gives the reply again that the very same request got before, without asking an upstream.

    Put it last, behind `moderation` in any case: what it gives is moderated like an upstream's reply, by the rules of the
    day, and counted by the plugins before it. Kept are replies that came whole and well, in the memory of each process.

    ttl_s: for how long a reply is given again. max_mb: what all of them may take, in MiB; those go first that nobody has
    asked for the longest. max_reply_kb: what one may take, in KiB, a stream with all its events.

    Replies are remembered while they come, in all up to max_mb more; one that would need more than that is not kept.

    shared_by: "key" gives a reply only to the key that got it; with "everyone" a key can tell, by what comes at once, what
    others have asked.

    A client's `Cache-Control` is heeded: no-cache asks anew, no-store keeps nothing, max-age is the oldest that it takes.
    """

    ttl_s: Annotated[float, Meta(ge=1, le=2_592_000)] = 3600.0
    max_mb: Annotated[int, Meta(ge=1, le=65_536)] = 64
    max_reply_kb: Annotated[int, Meta(ge=1, le=4096)] = 512
    shared_by: Literal["key", "everyone"] = "key"

    repeats: ClassVar[bool] = True
    needs: ClassVar[tuple[Key[Any], ...]] = (CALLER,)
    uses: ClassVar[tuple[Key[Any], ...]] = (CALLER, STOPPED_BY)  # nobody is told anything who is not let in

    _entries: Entries = dataclasses.field(init=False)
    _room: Room = dataclasses.field(init=False)
    _asked: Key[bytes] = dataclasses.field(init=False)
    _hit: Key[bytes] = dataclasses.field(init=False)
    _recorder: Key[Recorder] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if self.max_reply_kb * 1024 + OVERHEAD_BYTES > self.max_mb * 2**20:
            raise ValueError(
                f"max_mb = {self.max_mb} has no room for a reply of max_reply_kb = {self.max_reply_kb}; "
                "set max_reply_kb lower, or max_mb higher"
            )
        if self.shared_by == "everyone":
            self.needs = ()  # type: ignore[misc] # there need not be callers
        self._entries = Entries(self.max_mb * 2**20, self.ttl_s)
        self._room = Room(self.max_mb * 2**20)
        self._asked = Key("cache.asked", bytes)
        self._hit = Key("cache.hit", bytes)
        self._recorder = Key("cache.recorder", Recorder)

    # Requests

    async def on_request(self, ex: Exchange) -> Reply | None:
        wanted = directives.ANYTHING
        if _CONTROL in ex.headers:
            wanted = directives.read(ex.headers.getall(_CONTROL))
        asked = self._key(ex)
        found = self._entries.find(asked)
        if found is not None and wanted.store and found[1] < wanted.max_age_s:
            ex[self._hit] = asked
            return await self._again(ex, *found)
        ex.reply_headers[STATUS] = f"relay; fwd={'miss' if found is None else 'request'}"
        if wanted.store:
            ex[self._asked] = asked
        return None

    def _key(self, ex: Exchange) -> bytes:
        caller = ex[CALLER] if self.shared_by == "key" else ""
        # What plugins have the upstream told besides; whose trace a request belongs to changes no reply.
        told = sorted(item for item in ex.upstream_headers.items() if item[0] not in _TRACES)
        # A key of its own, so that no caller's name and body can be read as another's.
        whose = hashlib.blake2b(repr((caller, told)).encode("utf-8", "surrogatepass")).digest()
        return hashlib.blake2b(ex.request.encode(), key=whose, digest_size=32).digest()

    async def _again(self, ex: Exchange, entry: Entry, age_s: float) -> Reply:
        chunks = await _chunks(entry.data, streamed=ex.request.stream)
        ex.hides_usage = entry.hides_usage
        ex.reply_headers[STATUS] = f"relay; hit; ttl={int(self.ttl_s - age_s)}"
        ex.reply_headers[AGE] = str(int(age_s))
        return Reply(chunks, done=entry.done)

    # Replies

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        if self._asked not in ex or not ex.asked:  # what a later plugin says by itself is its own to repeat
            return sink
        ex[self._recorder] = recorder = Recorder(
            sink, self._room, max_bytes=self.max_reply_kb * 1024, choices=ex.request.choices, streamed=ex.request.stream
        )
        return recorder

    async def on_end(self, ex: Exchange) -> None:
        # Taken out, as it knows the sinks and these know the exchange: what stands in a circle is not let go of at once.
        recorder: Recorder | None = ex.pop(self._recorder, None)
        outcome = ex.outcome
        if self._hit in ex and (outcome is None or outcome.kind in ("filtered", "refused", "unavailable")):
            self._entries.forget(ex[self._hit])  # those before us do not let it pass any more
        if recorder is None:
            return
        said = recorder.said()
        if said is not None and outcome is not None and outcome.kind == "completed" and outcome.error is None:
            self._entries.keep(ex[self._asked], said.data, said.done, hides_usage=ex.hides_usage)
        recorder.release()


async def _chunks(data: bytes, *, streamed: bool) -> tuple[Chunk, ...]:
    """The events of a stream, or the one body."""
    if not streamed:
        return (Chunk.body(data),)
    return await asyncio.to_thread(events, data) if len(data) > INLINE_BYTES else events(data)
