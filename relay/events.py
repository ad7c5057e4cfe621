"""What happens in a relay that an operator may want to hear of at once: cuts, refusals, ejections, reloads. A bus of events.

Whoever has something to tell has a `Publisher`. `publish` never raises and never waits; what it says is bounded. The last
`KEPT` of each kind are kept, so one who listens again hears what was said meanwhile, and one who is slow loses the oldest,
never more than the relay's memory: there is one store of events and no queue of anybody's.

`KINDS` and `FIELDS` are the reference; docs/events.md says the same. **What may not be in an event**: prompts, replies, keys,
headers. A field is plain data: what is none is told as the name of its type.

Ids are `EPOCH-NUMBER`. The epoch is this life of the relay, so an id of an earlier one is known as such.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import time
from typing import Any, Final, Literal, NamedTuple, Protocol

import orjson

from relay.pure.recent import Recent

Kind = Literal[
    "cut",
    "refusal",
    "ejection",
    "return",
    "breaker",
    "throttle",
    "store",
    "worker",
    "reload",
    "start",
    "drain",
    "missed",
]


class Meaning(NamedTuple):
    """What a kind of event says, and which fields it may have beside `at` and `worker`; one without a value is left out."""

    text: str
    fields: tuple[str, ...]


_REQUEST: Final = ("request_id", "outcome", "code", "status", "moderator", "label", "caller", "model", "upstream")

KINDS: Final[Mapping[Kind, Meaning]] = {
    "cut": Meaning(
        "A reply ended early: by moderation, by the end of the quota, or by what failed after it had begun", _REQUEST
    ),
    "refusal": Meaning("A request was answered with an error", (*_REQUEST, "operation")),
    "ejection": Meaning("An upstream is asked only after all others from now on", ("upstream", "reason")),
    "return": Meaning("It is asked in its turn again", ("upstream",)),
    "breaker": Meaning("A moderator's circuit breaker changed its state", ("moderator", "before", "now")),
    "throttle": Meaning(
        "A moderator is asked less often, because it said that there were too many calls; or as often as before again",
        ("moderator", "before", "now", "ceiling"),
    ),
    "store": Meaning("The store is away or back, or the embedded one was started again", ("state", "reason", "away_s")),
    "worker": Meaning("A worker process serves, or has ended", ("state", "reason", "pid", "exit_status")),
    "reload": Meaning("relay.toml is read again, served by all workers, or refused", ("state", "reason", "workers")),
    "start": Meaning("The relay serves", ("workers", "pid")),
    "drain": Meaning(
        "The relay was told to stop: no new requests, and so long for the open ones", ("delay_s", "grace_s")
    ),
    "missed": Meaning("Events that this listener does not get", ("count", "reason")),
}

FIELDS: Final[Mapping[str, str]] = {
    "at": "When it happened, in UTC, to the millisecond.",
    "worker": "The number of the worker process that it is about, or that tells it; none with `workers = 1`.",
    "request_id": "As in `x-request-id` and in the log.",
    "operation": "`chat`, `models`, `quota` or `other`.",
    "outcome": "How the request ended; as in the log and in `relay_requests_total`.",
    "code": "Of the error that the client was told, if any.",
    "status": "HTTP's, of the answer.",
    "moderator": "Its name in logs and metrics; `guard` for the relay's own.",
    "label": "What the moderator found.",
    "caller": "The name of the key.",
    "model": "As the client wrote it, at most 64 characters.",
    "upstream": "Its name in relay.toml.",
    "reason": "Why; see below.",
    "before": "A breaker's state (`closed`, `probing`, `open`), or calls a second that were allowed.",
    "now": "The same, from now on.",
    "ceiling": "Calls a second that relay.toml allows.",
    "state": "What it is now; see below.",
    "away_s": "For how long it was, in seconds.",
    "pid": "Of the process.",
    "exit_status": "Of the process; below 0: the signal that ended it.",
    "workers": "How many processes serve.",
    "delay_s": "For so many seconds everybody is still served.",
    "grace_s": "For so many seconds open replies may go on.",
    "count": "How many, of whatever kind; none if nobody knows.",
}

FILTERS: Final = ("model", "upstream", "caller", "moderator")
"""The fields by which one may ask for events."""

KEPT: Final = 500
"""Events of each kind."""
MAX_LISTENERS: Final = 16
MODEL_CHARS: Final = 64

_MAX_CHARS: Final = 500
_MAX_INTEGER: Final = 2**53

_ALWAYS: Final = "missed"
_ID: Final = re.compile(r"([0-9a-f]{8})-([0-9]{1,15})", re.ASCII)


class Publisher(Protocol):
    """Where one tells what has happened."""

    def publish(self, kind: Kind, **fields: object) -> None:
        """Tell it. A field that is None is left out. Never raises and never waits; to be called on the loop's thread."""


class Nowhere:
    """For who has nobody to tell."""

    def publish(self, kind: Kind, **fields: object) -> None: ...


NOWHERE: Final = Nowhere()


class Event(NamedTuple):
    """at: seconds since the epoch of Unix. fields: plain data."""

    at: float
    kind: Kind
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events somebody wants: of these kinds, and with all of these values. What was missed is always told."""

    kinds: frozenset[Kind] = frozenset(KINDS)
    fields: Mapping[str, str] = field(default_factory=dict)

    def passes(self, event: Event) -> bool:
        if event.kind == _ALWAYS:
            return True
        return event.kind in self.kinds and all(event.fields.get(name) == value for name, value in self.fields.items())


class Events:
    """The bus, of a relay that is one process or of a supervisor."""

    def __init__(self) -> None:
        self._epoch = secrets.token_hex(4)
        self._recent: Recent[Event] = Recent(KINDS, KEPT)
        self._listeners: set[Listener] = set()
        self._closed = False

    # Telling

    def publish(self, kind: Kind, **fields: object) -> None:
        self.take(Event(time(), kind, plain(fields)))

    def take(self, event: Event) -> None:
        """What somebody else has published."""
        if event.kind in KINDS:
            self._recent.add(event.kind, event)
            for listener in self._listeners:
                listener.tell(event.kind)

    def close(self) -> None:
        """Nothing more will happen: who listens hears the last of it and is done."""
        self._closed = True
        for listener in self._listeners:
            listener.tell(_ALWAYS)

    # Listening

    @property
    def full(self) -> bool:
        """Whether nobody else may listen."""
        return len(self._listeners) >= MAX_LISTENERS

    @contextmanager
    def listen(self, wanted: Filter, *, after: str | None = None, last: int = 0) -> Iterator[Listener]:
        """Hear of what `wanted` lets through. after: the id that was heard last; without it, so many of the `last` first."""
        listener = Listener(self, wanted, after, last)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)


class Listener:
    """One who listens. Made by `Events.listen`."""

    def __init__(self, events: Events, wanted: Filter, after: str | None, last: int) -> None:
        self._events = events
        self._wanted = wanted
        self._kinds = wanted.kinds | {_ALWAYS}
        self._news: asyncio.Future[None] | None = None
        self._told = True  # there may be something that it has not seen
        self._first: list[bytes] = []  # what it gets before all else
        recent = events._recent
        self._number = recent.last  # of the last one that it has seen
        if after is not None:
            self._resume(after)
        elif last:
            passing = [each for each in recent.before(recent.last, self._kinds) if wanted.passes(each[1])]
            self._first = [self._written(*each) for each in passing[-last:]]

    @property
    def over(self) -> bool:
        """Nothing will come any more that `news` would not give now."""
        return self._events._closed

    @property
    def position(self) -> str:
        """The id of the last event that it has seen, whether it wanted it or not."""
        return f"{self._events._epoch}-{self._number}"

    def tell(self, kind: Kind) -> None:
        """There is something."""
        if kind in self._kinds:
            self._told = True
            if self._news is not None and not self._news.done():
                self._news.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Until there may be news, or nothing more will come, or the time is over."""
        if self._told or self.over:
            return
        self._news = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._news
        except TimeoutError:
            return
        finally:
            self._news = None

    def news(self) -> list[bytes]:
        """What has come since, as an event stream has it."""
        self._told = False
        recent = self._events._recent
        written, self._first = self._first, []
        gone, came = recent.since(self._number, self._kinds)
        if gone:
            written.append(self._missed("late", gone))
        written += [self._written(*each) for each in came if self._wanted.passes(each[1])]
        self._number = recent.last
        return written

    def _resume(self, after: str) -> None:
        found = _ID.fullmatch(after)
        if found is not None and found[1] == self._events._epoch:
            self._number = min(self._number, int(found[2]))
        else:
            self._number = 0
            self._first = [self._missed("restarted", None)]

    def _missed(self, reason: str, count: int | None) -> bytes:
        """Its id is that of the event before the first one that follows, so that none of those is lost after it."""
        fields = {"reason": reason} if count is None else {"count": count, "reason": reason}
        return self._written(self._number, Event(time(), _ALWAYS, fields))

    def _written(self, number: int, event: Event) -> bytes:
        data = orjson.dumps({"at": moment(event.at), **event.fields})
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (
            self._events._epoch.encode(),
            number,
            event.kind.encode(),
            data,
        )


def moment(at: float) -> str:
    """Seconds since the epoch of Unix, as 2026-01-31T12:00:00.000Z."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(fields: Mapping[str, object]) -> dict[str, Any]:
    """Fields as they may stand in an event: JSON of bounded size, whatever was given."""
    return {name: _plain(value) for name, value in fields.items() if value is not None}


def _plain(value: object) -> Any:
    if type(value) is str:
        text = value if len(value) <= _MAX_CHARS else value[:_MAX_CHARS]
        return text if text.isascii() else text.encode("utf-8", "replace").decode()
    if type(value) is bool or type(value) is float:
        return value
    if type(value) is int and -_MAX_INTEGER < value < _MAX_INTEGER:
        return value
    return f"<{type(value).__name__}>"
