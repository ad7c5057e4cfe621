"""The chain: plugins in the order of the file, and where there are branches (`[[chains]]`), one of those behind them.

A plugin without a hook is not asked for it. On the way back the sinks of the plugins that a request has passed are
folded over the writer; `_Layer` keeps the promises between two of them (end once, errors named) at the cost of one call.

Most hooks wait for nothing. Such a one costs its own coroutine and no more: one reading of the clock tells when it has
ended and the next one begun, and a timer is made for an `on_end` that does wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from time import monotonic
from types import coroutine
from typing import Any, Final, TypeVar, cast

from relay.errors import InternalError, PluginError, Reject, RelayError, Unavailable, being_cancelled
from relay.exchange import CALLER, Did, Exchange, Outcome
from relay.fitting import misfits
from relay.keys import API_KEY, ApiKey
from relay.options import ConfigError
from relay.plugin import Plugin, Reply, Sink
from relay.pure.openai import Chunk
from relay.pure.request import ChatRequest, InvalidRequest, JsonObject
from relay.section import Link, Section

# A plugin that has not settled its affairs by then is left behind, and named in the log.
END_TIMEOUT_S = 5.0

T = TypeVar("T")

OnError = Callable[[PluginError, BaseException], None]
# Of a request that came without a key that is known.
NOBODY: Final = ApiKey(name="")


class Chain:
    """Plugins under their names: those that every request meets, and then one of the branches, if there are any.

    Raises ConfigError if they do not fit together.
    """

    def __init__(
        self,
        plugins: Iterable[tuple[str, Plugin]],
        on_error: OnError | None = None,
        places: Sequence[str] = (),
        branches: Iterable[Section] = (),
    ) -> None:
        """on_error: told what a plugin raised that is not ours, for the log; it may be given later, by `tell`.

        places: where each plugin stands in the configuration; with it problems begin. branches: the first one that fits a
        request is the one that it goes on in.
        """
        self.head = Section(plugins, places)
        self.branches = tuple(branches)
        self.links = (*self.head.links, *(link for branch in self.branches for link in branch.links))
        self._on_error = on_error or (lambda error, cause: None)
        self._head = (self.head,)
        self._by_model = any(branch.match is not None and branch.match.models for branch in self.branches)
        if problems := misfits(self.head, self.branches):
            raise ConfigError(*problems)
        self.routes = {route: link for link in self.links for route in link.plugin.routes}

    def tell(self, on_error: OnError) -> None:
        """Tell `on_error` from now on."""
        self._on_error = on_error

    def read(self, path: str, body: bytes) -> ChatRequest:
        """The chat completion that a request to `path` asks for. Raises RelayError or InvalidRequest."""
        link = self.routes.get(path)
        if link is None:
            return ChatRequest(body)
        given = JsonObject(body)
        try:
            translated = link.plugin.translate(path, given)
        except (RelayError, InvalidRequest):
            raise
        except Exception as cause:
            raise self._named(link, "translate", cause) from cause
        if not isinstance(translated, JsonObject):
            raise self._named(link, "translate", TypeError(f"returned a {type(translated).__name__}, no JsonObject"))
        return ChatRequest.of(translated)

    async def enter(self, ex: Exchange, entered: list[Link]) -> Reply | None:
        """Take the request through the chain: an early answer, or None if the upstream is to be asked.

        `entered` is filled with the plugins that the request has passed, also when this raises.
        """
        steps, started = ex.steps, monotonic()
        for section in self._way(ex) if self.branches else self._head:
            for link in section.taking_part[ex.operation]:
                if link.on_request is None:
                    entered.append(link)
                    continue
                try:
                    asking = link.on_request(ex)
                    try:
                        waits_for = asking.send(None)
                    except StopIteration as answered:
                        reply = answered.value  # it has waited for nothing, as most do
                    else:
                        reply = await _within(link.budget_s, asking, waits_for)
                except OverdueError as overdue:
                    ended = monotonic()
                    steps.append((link.name, "overdue", ended - started))
                    started = ended
                    self._pass_over(link, overdue, ex)
                    continue
                except BaseException as cause:
                    did, blamed = self._blamed(link, cause, ex)
                    steps.append((link.name, did, monotonic() - started))
                    if blamed is cause:
                        raise
                    raise blamed from cause
                entered.append(link)
                ended = monotonic()
                if reply is not None:
                    steps.append((link.name, "answered", ended - started))
                    return self._answer(link, reply, ex)
                steps.append((link.name, "passed", ended - started))
                started = ended
        return None

    def _answer(self, link: Link, reply: object, ex: Exchange) -> Reply:
        """A plugin's early answer. Raises PluginError for one that cannot be sent."""
        if not isinstance(reply, Reply):
            raise self._named(link, "on_request", TypeError(f"returned a {type(reply).__name__}, no Reply"), ex)
        if not isinstance(reply.headers, Mapping) or not isinstance(reply.chunks, tuple | list):
            raise self._named(link, "on_request", TypeError("a Reply has a tuple of chunks, and headers"), ex)
        return reply

    def _pass_over(self, link: Link, overdue: OverdueError, ex: Exchange) -> None:
        """Go on without a plugin that has taken too long, and what it gave. Raises Unavailable if it is not to be."""
        self._named(link, "on_request", overdue, ex)
        if link.plugin.over_budget == "refuse":
            raise Unavailable("It takes too long to look at this request. Try again.", code="overdue") from None
        for key in (*link.plugin.gives, *link.plugin.tells):
            ex.pop(key, None)

    def _way(self, ex: Exchange) -> Iterator[Section]:
        """The sections that a request meets: which branch is known when the plugins before it have seen it."""
        yield self.head
        branch = self._branch(ex)
        if branch is not None:
            ex.chain = branch.name
            yield branch

    def _branch(self, ex: Exchange) -> Section | None:
        """Where a request goes on. Raises Reject for one whose models would go several ways."""
        key = ex.get(API_KEY, NOBODY)
        caller = ex.get(CALLER, key.name)
        models: Sequence[str | None] = (None,)
        if self._by_model and ex.operation == "chat":
            models = ex.request.models
        ways = [self.branch(route=ex.route, caller=caller, labels=key.labels, model=model) for model in models]
        if any(way is not ways[0] for way in ways):
            raise Reject(
                "These models are not served together: ask for one of them.", code="mixed_models", param="models"
            )
        return ways[0]

    def branch(self, *, route: str, caller: str, labels: Mapping[str, str], model: str | None) -> Section | None:
        """Where such a request goes on; None: nowhere, what all meet is all that it meets."""
        for branch in self.branches:
            if branch.match is None or branch.match.takes(route=route, caller=caller, labels=labels, model=model):
                return branch
        return None

    def _blamed(self, link: Link, cause: BaseException, ex: Exchange) -> tuple[Did, BaseException]:
        """What a plugin did whose `on_request` raised, and what is raised for that."""
        if isinstance(cause, RelayError):
            return "failed" if isinstance(cause, InternalError) else "refused", cause
        if isinstance(cause, asyncio.CancelledError):
            return ("cancelled", cause) if being_cancelled() else ("failed", self._named(link, "on_request", cause, ex))
        return "failed", self._named(link, "on_request", cause, ex) if isinstance(cause, Exception) else cause

    def wrap(self, ex: Exchange, entered: Sequence[Link], sink: Sink) -> Sink:
        """The way back: the last plugin that the request met sees a chunk first.

        For an early answer `entered` is without the plugin that gave it: it does not see its own answer. When a plugin
        raises here, the sinks that are there already see the end.
        """
        layer: _Layer | _Last = _Last(sink)
        try:
            for link in entered:
                if link.on_stream is not None:
                    wrapped = link.on_stream(ex, layer)
                    if wrapped is not layer:
                        layer = _Layer(link, ex, _checked(wrapped), layer, self._named)
        except Exception as cause:
            error = cause if isinstance(cause, RelayError) else self._named(link, "on_stream", cause, ex)
            layer.end(Outcome.of(error))
            if error is cause:
                raise
            raise error from cause
        return layer

    def blame(self, sink: Sink) -> None:
        """Name the plugin that has kept the end of a reply, which began with `sink`, from the next one; if one has."""
        while isinstance(sink, _Layer):
            if sink.ended and not sink.below.ended:
                self._named(sink.link, "end", RuntimeError("its sink did not pass the end on"), sink.ex)
            sink = sink.below

    async def leave(self, ex: Exchange, entered: Sequence[Link]) -> None:
        """`on_end` for each plugin that was entered, the last one first. Never raises.

        Runs in a task that no client can cancel. If that is cancelled all the same, when the process stops, one `on_end`
        is cut short and the others follow.
        """
        for link in reversed(entered):
            if link.on_end is not None:
                try:
                    ending = link.on_end(ex)
                    try:
                        waits_for = ending.send(None)
                    except StopIteration:
                        continue  # it has waited for nothing, as most do
                    async with asyncio.timeout(END_TIMEOUT_S):
                        await _rest(ending, waits_for)
                except (Exception, asyncio.CancelledError) as cause:  # noqa: BLE001 - the next plugin still has its end
                    self._named(link, "on_end", cause, ex)

    def _named(self, link: Link, hook: str, cause: BaseException, ex: Exchange | None = None) -> PluginError:
        error = PluginError(link.name, hook, ex.id if ex is not None else "")
        self._on_error(error, cause)
        return error


def _checked(wrapped: Sink) -> Sink:
    # Not isinstance(wrapped, Sink): the check of a protocol costs 20 µs.
    if not callable(getattr(wrapped, "feed", None)) or not callable(getattr(wrapped, "end", None)):
        raise TypeError(f"returned a {type(wrapped).__name__}, no sink")
    return wrapped


class OverdueError(Exception):
    """A plugin has used up the time that it has for a request."""


async def _within(budget_s: float, work: Coroutine[Any, Any, T], waits_for: Any) -> T:
    """What work that has begun comes to. Raises OverdueError if its time is over before, when it is cancelled."""
    timer = asyncio.timeout(budget_s)
    try:
        async with timer:
            done = await _rest(work, waits_for)
    except Exception as cause:
        if timer.expired():  # whatever it made of being told to stop
            raise OverdueError(f"has taken longer than {budget_s:g} s") from cause
        raise
    if timer.expired():
        raise OverdueError(f"has taken longer than {budget_s:g} s, and went on when it was told to stop")
    return done


@coroutine
def _rest(work: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """The rest of work that has begun outside of an `await`, and waits for something."""
    while True:
        try:
            try:
                told = yield waits_for
            except BaseException as thrown:  # noqa: BLE001 - it is the work's to hear
                waits_for = work.throw(thrown)
            else:
                waits_for = work.send(told)
        except StopIteration as ended:
            return cast(T, ended.value)


class _Last:
    """The writer as the plugin next to it sees it: ends once, and hears nothing afterwards."""

    __slots__ = ("_sink", "ended", "feed")

    def __init__(self, sink: Sink) -> None:
        self.feed: Callable[[Chunk], None] = sink.feed  # the writer's own: no call in between
        self._sink = sink
        self.ended = False

    def end(self, outcome: Outcome) -> None:
        if not self.ended:
            self.ended = True
            self.feed = _ignored
            self._sink.end(outcome)


def _ignored(chunk: Chunk) -> None:
    pass


class _Layer:
    """A plugin's sink as its neighbours see it: ends once, never raises."""

    __slots__ = ("_broken", "_deaf", "_named", "_sink", "below", "ended", "ex", "link")

    def __init__(
        self,
        link: Link,
        ex: Exchange,
        sink: Sink,
        below: _Layer | _Last,
        named: Callable[[Link, str, BaseException, Exchange], PluginError],
    ) -> None:
        self.link = link
        self.ex = ex
        self._sink = sink
        self.below = below
        self._named = named
        self.ended = False
        self._deaf = False  # it has ended, or failed
        self._broken: PluginError | None = None

    def feed(self, chunk: Chunk) -> None:
        if self._deaf:
            return
        try:
            self._sink.feed(chunk)
        except Exception as cause:  # noqa: BLE001 - named, and it ends the reply
            self._fail("feed", cause)

    def end(self, outcome: Outcome) -> None:
        if self.ended:
            return
        self.ended = self._deaf = True
        if self._broken is not None:
            self._end_below(outcome, self._broken)
        try:
            self._sink.end(outcome)
        except Exception as cause:  # noqa: BLE001 - named; the end is passed on in its place
            if self._broken is None:
                self._end_below(outcome, self._fail("end", cause))

    def _fail(self, hook: str, cause: Exception) -> PluginError:
        self._deaf = True
        self._broken = self._named(self.link, hook, cause, self.ex)
        self.ex.stop(Outcome("internal_error", self._broken))
        return self._broken

    def _end_below(self, outcome: Outcome, error: PluginError) -> None:
        """Pass the end on for a sink that failed. What had gone wrong before it did is still what went wrong."""
        well = outcome.kind in ("completed", "filtered", "exhausted") and outcome.error is None
        self.below.end(Outcome("internal_error", error) if well else outcome)
