"""One request and its reply, as every plugin sees it: the exchange.

It holds what plugins share (the request, typed state, reply headers), and the three levers on the way back: reading
from the upstream is paused while anyone holds it, `stop` ends the reply, `spawn` starts work that ends with it.

Callbacks on a pooled upstream connection run in the context of the request that opened that connection, so nothing here
or in a sink may rely on context variables: what a sink needs is on its exchange.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, Protocol, TypeVar

from multidict import CIMultiDict, CIMultiDictProxy

from relay.errors import InternalError, RelayError, UpstreamError, forget_frames
from relay.pure.openai import DONE_EVENT
from relay.pure.request import ChatRequest
from relay.pure.tally import Violation
from relay.told import Server, Told
from relay.upstream_headers import UpstreamHeaders

T = TypeVar("T")

# Spawned work that has not ended by then, although it was cancelled, is left behind.
CLOSE_TIMEOUT_S = 5.0

Operation = Literal["chat", "models", "quota"]

# `relay.metrics.families.OUTCOMES` says what each means.
OutcomeKind = Literal[
    "completed",
    "filtered",
    "exhausted",
    "refused",
    "unavailable",
    "upstream_error",
    "client_gone",
    "drained",
    "internal_error",
]


class Key(Generic[T]):
    """The name and type of a value that plugins share: `ex[KEY]`. Made once, at a module's level."""

    __slots__ = ("name", "type")

    def __init__(self, name: str, type: type[T]) -> None:
        self.name = name
        self.type = type

    def __repr__(self) -> str:
        return f"<Key {self.name}: {self.type.__name__}>"


Did = Literal["passed", "answered", "refused", "failed", "overdue", "cancelled"]


Step = tuple[str, Did, float]
"""The name of a plugin, what it did with a request on its way in, and how long it took, in seconds."""


CALLER: Final = Key("caller", str)
"""The name of the key that the request came with. Given by `auth`; never the key itself."""

STOPPED_BY: Final[Key[tuple[str, str]]] = Key("stopped_by", tuple)
"""The moderator that stopped the request or its reply, and the label that it gave. Given by `moderation`."""

VIOLATIONS: Final[Key[list[Violation]]] = Key("violations", list)
"""What moderators have found in the request and its reply, whatever came of it, in the order in which it was found: 100 at most.

Of a surface the names that are well known, and "?" for others: a client can say anything in the name of a field.
Given by `moderation`, when there is one. What is found after a reply has ended, as in shadow mode, stands in the log alone.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reply ended.

    error: what the client is told: as the answer if the head has not left, else in the stream.
    done: the bytes of the `[DONE]` event, as the upstream sent it.
    """

    kind: OutcomeKind
    error: RelayError | None = None
    done: bytes = DONE_EVENT

    @classmethod
    def of(cls, error: RelayError) -> Outcome:
        """A request that ends by an error."""
        if isinstance(error, UpstreamError):
            return cls("upstream_error", error)
        if isinstance(error, InternalError):
            return cls("internal_error", error)
        return cls("refused" if error.status < 500 else "unavailable", error)


class Flow(Protocol):
    """The reading end of an upstream connection."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def stop(self, outcome: Outcome) -> None:
        """Read no more; close what is open; `end(outcome)` reaches the sinks in the loop's next turn."""


class ReplyHeaders(CIMultiDict[str]):
    """Headers for the reply. Writable until the head has left; changing one then is an error, not a silent loss.

    Until then they are a multidict and nothing more, so setting one costs no check; then they become `_SentHeaders`.
    """

    __slots__ = ()

    @property
    def sent(self) -> bool:
        """Whether the head has left. Set once, by whoever sends it."""
        return False

    @sent.setter
    def sent(self, sent: Literal[True]) -> None:
        self.__class__ = _SentHeaders


class _SentHeaders(ReplyHeaders):
    """Headers of a head that has left: read only."""

    __slots__ = ()

    @property
    def sent(self) -> bool:
        return True

    @sent.setter
    def sent(self, sent: Literal[True]) -> None:
        pass


def _too_late(headers: _SentHeaders, *args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError("the head of the reply has left: its headers cannot be changed any more")


# Each is written in C and calls no other, so each has to be replaced.
for _name in "__setitem__ __delitem__ add extend update merge setdefault pop popone popall popitem clear".split():
    setattr(_SentHeaders, _name, _too_late)


class _State(dict[Key[Any], Any]):
    """What plugins share, by key. A dict's own methods, written in C: each request asks a dozen times."""

    __slots__ = ()

    # One request is not another, whatever is known of them.
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __repr__ = object.__repr__

    def __bool__(self) -> bool:
        return True

    def __missing__(self, key: Key[Any]) -> NoReturn:
        raise KeyError(f"{key.name} is not set: no plugin before this one gives it")

    if TYPE_CHECKING:

        def __getitem__(self, key: Key[T]) -> T: ...

        def __setitem__(self, key: Key[T], value: T) -> None: ...

        def get(self, key: Key[T], default: T) -> T: ...  # type: ignore[override]


class Exchange(_State):
    """See the head of this file. `ex[KEY]`, `ex[KEY] = value`, `KEY in ex`, `ex.get(KEY, default)`: what plugins share.

    id: the request id, in the reply's `x-request-id` and in every log line.
    route: the path that the request came to. chain: the one of `[[chains]]` that it goes on in; "" before that, and without.
    started: by `time.monotonic`, in seconds, as all times that are told of an exchange: uvloop's clock counts milliseconds.
    asked: whether an upstream may have the request.
    steps: what the plugins that the request has met did with it.
    upstream: who was asked last.
    moderated_s: how long moderation made the client wait for the first text, in seconds, so far; None: there is none.
    needs_usage: set by a plugin that meters, in `on_request`: the upstream is asked to say at the end of a stream how
        many tokens it took. A client that did not ask for that does not see the frame that says so.
    hides_usage: whether the reply has such a frame that the client is not to see. Set where an upstream is asked, and by a
        plugin that gives again what was said to an exchange for which it was set.
    """

    __slots__ = (
        *("id", "operation", "route", "chain", "headers", "reply_headers", "outcome", "asked", "steps"),
        *("moderated_s", "needs_usage", "hides_usage"),
        *("loop", "started", "loaded", "_load", "_holders", "_flow", "_stopped", "_tasks", "_closed"),
        *("upstream", "_tell", "_upstream_headers"),
    )

    def __init__(
        self,
        id: str,
        operation: Operation,
        headers: CIMultiDictProxy[str],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.id = id
        self.operation: Operation = operation
        self.route = ""
        self.chain = ""
        self.headers = headers
        self.reply_headers = ReplyHeaders()
        self.outcome: Outcome | None = None
        self.asked = False
        self.upstream: Server | None = None
        self._upstream_headers: UpstreamHeaders | None = None  # made when somebody looks, as few do
        self.steps: list[Step] = []
        self.moderated_s: float | None = None
        self.needs_usage = False
        self.hides_usage = False
        self.loop = loop or asyncio.get_running_loop()  # which is a system call in Python 3.11
        self.started = monotonic()
        self._load: Callable[[], ChatRequest] | None = None
        self.loaded: ChatRequest | None = None  # the chat request, once somebody has looked at it
        self._holders: set[Hashable] | None = None  # made when somebody pauses, as few have to
        self._flow: Flow | None = None
        self._stopped: Outcome | None = None
        self._tasks: set[asyncio.Task[Any]] | None = None  # of what was spawned, likewise
        self._closed = False
        self._tell: Callable[[], Told] | None = None

    @property
    def request(self) -> ChatRequest:
        """The chat request, read when it is first looked at: whoever is not let in has nothing parsed.

        Raises Reject if it is not one. Only exchanges whose operation is "chat" have one.
        """
        if self.loaded is None:
            if self._load is None:
                raise RuntimeError(f"a {self.operation} request has no chat request")
            self.loaded = self._load()
        return self.loaded

    def loads(self, load: Callable[[], ChatRequest]) -> None:
        """`load` reads the chat request; it may raise Reject."""
        self._load = load

    @property
    def upstream_headers(self) -> UpstreamHeaders:
        """Headers for the upstream, beside those of the relay; to be set in `on_request`. They go with retries too."""
        if self._upstream_headers is None:
            self._upstream_headers = UpstreamHeaders()
        return self._upstream_headers

    @property
    def upstream_lines(self) -> bytes:
        """The same as they stand in a head."""
        return b"" if self._upstream_headers is None else self._upstream_headers.lines

    @property
    def told(self) -> Told:
        """What is known when all has ended, so in `on_end` only."""
        if self._tell is None:
            raise RuntimeError("a request is told of when it has ended: ask for `told` in `on_end`")
        return self._tell()

    def tells(self, tell: Callable[[], Told]) -> None:
        """All has ended, and `tell` knows how. Called as often as somebody asks."""
        self._tell = tell

    # The way back

    def attach(self, flow: Flow) -> None:
        """The reply has begun to come. What was asked for before now takes effect."""
        self._flow = flow
        if self._stopped is not None:
            flow.stop(self._stopped)
        elif self._holders:
            flow.pause()

    def moderated(self, seconds: float) -> None:
        """Moderation has made the client wait so much longer for the first text."""
        self.moderated_s = (self.moderated_s or 0.0) + seconds

    @property
    def paused(self) -> bool:
        return bool(self._holders)

    def pause(self, who: Hashable) -> None:
        """Read no more from the upstream until `who`, and everyone else who asked, has resumed."""
        if self._holders is None:
            self._holders = set()
        if not self._holders and self._flow is not None:
            self._flow.pause()
        self._holders.add(who)

    def resume(self, who: Hashable) -> None:
        """`who` has no objection any more. Reading starts again in the loop's next turn, never inside this call."""
        if self._holders and who in self._holders:
            self._holders.discard(who)
            if not self._holders:
                self.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._holders and self._flow is not None:
            self._flow.resume()

    @property
    def stopped(self) -> Outcome | None:
        """Why the upstream is not to be read any more."""
        return self._stopped

    def stop(self, outcome: Outcome) -> None:
        """Enough has been seen: the upstream is cancelled. `end(outcome)` still comes, once; the first outcome counts."""
        if self._stopped is None:
            self._stopped = outcome
            if self._flow is not None:
                self._flow.stop(outcome)

    # Work that belongs to this exchange

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that is cancelled and awaited when the exchange ends; after that it is cancelled at once.

        What it raises ends the reply with an internal error, and is handed to the loop's exception handler.
        """
        task = self.loop.create_task(work)
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._settle)
        if self._closed:
            task.cancel()
        return task

    def _settle(self, task: asyncio.Task[Any]) -> None:
        assert self._tasks is not None
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report("spawned work failed", task, error)
            self.stop(Outcome("internal_error", InternalError()))

    def _report(self, message: str, task: asyncio.Task[Any], error: BaseException | None = None) -> None:
        self.loop.call_exception_handler(
            {"message": f"{message}, of request {self.id}", "task": task, **({"exception": error} if error else {})}
        )

    def forget(self) -> None:
        """Let go of what refers back to this exchange: nobody looks at it any more.

        Whatever is part of a circle waits for the collector, which comes seldom: a request of 2 MB would wait that long.
        """
        self._flow = self._load = self.loaded = self._tell = None
        if self.outcome is not None and self.outcome.error is not None:
            forget_frames(self.outcome.error)

    async def close(self) -> None:
        """Cancel what was spawned and wait for it, bounded in time."""
        self._closed = True
        if self._tasks:
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            _, left = await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)
            for task in left:
                self._report("spawned work goes on although it was cancelled", task)
