"""What is found wrong with a plugin, in sentences for its author; and the promises, as docs/plugins.md gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

Promise = Literal[
    "tried", "raises", "end", "late", "chunks", "cut", "whole", "choices", "finish", "memory", "pause", "leave", "state",
    "gives", "answer", "tasks",
]  # fmt: skip

REMEDIES: Final[Mapping[Promise, str]] = {
    "tried": "give request=, headers= or before= with which it lets one through",
    "raises": "a hook raises Reject or RelayError, for what a client may hear, and nothing else; `feed` and `end` raise nothing",
    "end": "pass each end on once, after what is held, whatever its outcome is: sink.end(outcome)",
    "late": "feed nothing after the end: let out what is held first",
    "chunks": "a chunk is shared; make another one by Chunk.event or Chunk.body",
    "cut": "a word may be cut anywhere: hold its beginning until more has come, as relay.text.TextSink does",
    "whole": "a reply that is not streamed is one chunk, with a `message` in place of each `delta`: do to it what is done to a stream",
    "choices": "hold what is held for each choice by itself, by its `index`: choices come in turns",
    "finish": "let out what is held of a choice before the frame that has its `finish_reason`, or in it: many clients read no further",
    "memory": "let out what is decided, or pause the upstream (ex.pause) while much is held",
    "pause": "every ex.pause(self) needs its ex.resume(self), also when the end comes",
    "leave": "let asyncio.CancelledError pass, after cleaning up: the client has left",
    "state": "keep what belongs to one request on its exchange (ex[KEY]) or in its sink, not on the plugin",
    "gives": "on_request sets every key in `gives` for each request that it lets through, with a value of the key's type",
    "answer": "a Reply has events (Chunk.event) for a client that asked for a stream, without [DONE], else one Chunk.body",
    "tasks": "start work of a request by ex.spawn; end what the plugin itself has started after the yield of its lifespan",
}
assert set(REMEDIES) == set(get_args(Promise))


class Finding(NamedTuple):
    """A promise that was broken: in which cases, and what was seen."""

    promise: Promise
    cases: tuple[str, ...]
    seen: str

    def __str__(self) -> str:
        more = f" and {len(self.cases) - 1} more cases" if len(self.cases) > 1 else ""
        return f"{self.promise}: it {self.seen} ({self.cases[0]}{more}): {REMEDIES[self.promise]}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a plugin's contract was found to be.

    findings: empty if it is kept. conversations: how many were held. notes: what was not tried, and why.
    """

    findings: tuple[Finding, ...]
    conversations: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.findings:
            return f"the contract is kept, in {self.conversations} conversations"
        return "\n".join(map(str, self.findings))
