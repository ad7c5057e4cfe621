"""The chain: plugins in the order of the file, compiled once into one tuple for each phase.

A plugin without a hook is not asked for it. On the way back the sinks of the plugins that a request has passed are
folded over the writer; `_Layer` keeps the promises between two of them (end once, errors named) at the cost of one call.

Most hooks wait for nothing. Such a one costs its own coroutine and no more: one reading of the clock tells when it has
ended and the next one begun, and a timer is made for an `on_end` that does wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from time import monotonic
from types import coroutine
from typing import Any

from relay.errors import InternalError, PluginError, RelayError, being_cancelled
from relay.exchange import Did, Exchange, Key, Operation, Outcome
from relay.options import ConfigError
from relay.plugin import HOOKS, OPERATIONS, Plugin, Reply, Sink, hook_problems
from relay.pure.openai import Chunk
from relay.pure.request import ChatRequest, InvalidRequest, JsonObject
from relay.routes import ROUTES

# A plugin that has not settled its affairs by then is left behind, and named in the log.
END_TIMEOUT_S = 5.0

OnError = Callable[[PluginError, BaseException], None]
OnRequest = Callable[[Exchange], Awaitable[Reply | None]]


class Link:
    """A plugin under the name that it has in this chain.

    on_request, on_stream, on_end: its hooks; None for one that it does not override.
    """

    __slots__ = ("name", "on_end", "on_request", "on_stream", "plugin")

    def __init__(self, name: str, plugin: Plugin) -> None:
        self.name = name
        self.plugin = plugin
        self.on_request = plugin.on_request if self.overrides("on_request") else None
        self.on_stream = plugin.on_stream if self.overrides("on_stream") else None
        self.on_end = plugin.on_end if self.overrides("on_end") else None

    def overrides(self, hook: str) -> bool:
        return getattr(type(self.plugin), hook) is not getattr(Plugin, hook)


class Chain:
    """Plugins under their names. Raises ConfigError if they do not fit together."""

    def __init__(
        self, plugins: Iterable[tuple[str, Plugin]], on_error: OnError | None = None, places: Sequence[str] = ()
    ) -> None:
        """on_error: told what a plugin raised that is not ours, for the log; it may be given later, by `tell`.

        places: where each plugin stands in the configuration; with it problems begin.
        """
        self.links = tuple(Link(name, plugin) for name, plugin in plugins)
        self._on_error = on_error or (lambda error, cause: None)
        _check(self.links, [f"{place}: " for place in places] or [""] * len(self.links))
        self._taking_part: dict[Operation, tuple[Link, ...]] = {
            operation: tuple(link for link in self.links if operation in link.plugin.serves and _takes_part(link))
            for operation in OPERATIONS
        }
        self._requests: dict[Operation, tuple[tuple[Link, str, OnRequest], ...]] = {
            operation: tuple((link, link.name, link.on_request) for link in links if link.on_request is not None)
            for operation, links in self._taking_part.items()
        }
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
        links = self._taking_part[ex.operation]
        steps, started = ex.steps, monotonic()
        for link, name, on_request in self._requests[ex.operation]:
            try:
                reply = await on_request(ex)
            except BaseException as cause:
                did, error = self._blamed(link, cause)
                steps.append((name, did, monotonic() - started))
                entered += links[: links.index(link)]
                if error is cause:
                    raise
                raise error from cause
            ended = monotonic()
            if reply is not None:
                steps.append((name, "answered", ended - started))
                entered += links[: links.index(link) + 1]
                if not isinstance(reply, Reply):
                    raise self._named(link, "on_request", TypeError(f"returned a {type(reply).__name__}, no Reply"))
                return reply
            steps.append((name, "passed", ended - started))
            started = ended
        entered += links
        return None

    def _blamed(self, link: Link, cause: BaseException) -> tuple[Did, BaseException]:
        """What a plugin did whose `on_request` raised, and what is raised for that."""
        if isinstance(cause, RelayError):
            return "failed" if isinstance(cause, InternalError) else "refused", cause
        if isinstance(cause, asyncio.CancelledError):
            return ("cancelled", cause) if being_cancelled() else ("failed", self._named(link, "on_request", cause))
        return "failed", self._named(link, "on_request", cause) if isinstance(cause, Exception) else cause

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
            error = cause if isinstance(cause, RelayError) else self._named(link, "on_stream", cause)
            layer.end(Outcome.of(error))
            if error is cause:
                raise
            raise error from cause
        return layer

    def blame(self, sink: Sink) -> None:
        """Name the plugin that has kept the end of a reply, which began with `sink`, from the next one; if one has."""
        while isinstance(sink, _Layer):
            if sink.ended and not sink.below.ended:
                self._named(sink.link, "end", RuntimeError("its sink did not pass the end on"))
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
                    self._named(link, "on_end", cause)

    def _named(self, link: Link, hook: str, cause: BaseException) -> PluginError:
        error = PluginError(link.name, hook)
        self._on_error(error, cause)
        return error


def _checked(wrapped: Sink) -> Sink:
    # Not isinstance(wrapped, Sink): the check of a protocol costs 20 µs.
    if not callable(getattr(wrapped, "feed", None)) or not callable(getattr(wrapped, "end", None)):
        raise TypeError(f"returned a {type(wrapped).__name__}, no sink")
    return wrapped


@coroutine
def _rest(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """The rest of work that has begun outside of an `await`, and waits for something."""
    while True:
        try:
            try:
                told = yield waits_for
            except BaseException as thrown:  # noqa: BLE001 - it is the work's to hear
                waits_for = work.throw(thrown)
            else:
                waits_for = work.send(told)
        except StopIteration:
            return


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

    __slots__ = ("_broken", "_deaf", "_ex", "_named", "_sink", "below", "ended", "link")

    def __init__(
        self,
        link: Link,
        ex: Exchange,
        sink: Sink,
        below: _Layer | _Last,
        named: Callable[[Link, str, BaseException], PluginError],
    ) -> None:
        self.link = link
        self._ex = ex
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
        self._broken = self._named(self.link, hook, cause)
        self._ex.stop(Outcome("internal_error", self._broken))
        return self._broken

    def _end_below(self, outcome: Outcome, error: PluginError) -> None:
        """Pass the end on for a sink that failed. What had gone wrong before it did is still what went wrong."""
        well = outcome.kind in ("completed", "filtered", "exhausted") and outcome.error is None
        self.below.end(Outcome("internal_error", error) if well else outcome)


def _takes_part(link: Link) -> bool:
    return any(link.overrides(hook) for hook in ("on_request", "on_stream", "on_end"))


def _check(links: Sequence[Link], places: Sequence[str]) -> None:
    problems = []
    routes = dict.fromkeys(ROUTES, "the relay itself")
    for position, (link, place) in enumerate(zip(links, places, strict=True)):
        for route in link.plugin.routes:
            if route in routes:
                problems.append(
                    f"{place}plugin {link.name!r}: {route} is served by {routes[route]}; remove one of them"
                )
            routes[route] = f"plugin {link.name!r}"
        problems += [f"{place}plugin {link.name!r}: {problem}" for problem in hook_problems(type(link.plugin))]
        for key in link.plugin.needs:
            unmet = _unmet(link, key, links[:position], links[position + 1 :])
            problems += [f"{place}{problem}" for problem in unmet]
    if problems:
        raise ConfigError(*problems)


def _unmet(link: Link, key: Key[object], before: Sequence[Link], after: Sequence[Link]) -> Iterator[str]:
    """What is wrong with a need, if anything."""
    givers = [other for other in before if key in other.plugin.gives]
    if not givers:
        later = any(key in other.plugin.gives for other in after)
        hint = "a later one does; move it up" if later else "add a plugin that does"
        yield f"plugin {link.name!r} needs {key.name!r} and no plugin before it gives it: {hint}"
    elif bare := link.plugin.serves.difference(*(giver.plugin.serves for giver in givers)):
        names = " and ".join(repr(giver.name) for giver in givers)
        yield (
            f"plugin {link.name!r} needs {key.name!r} and serves {', '.join(sorted(bare))}, "
            f"where {names}, which gives it, takes no part"
        )


def hooks(link: Link) -> tuple[str, ...]:
    """The hooks that a plugin has, for `relay check`."""
    return tuple(hook for hook in HOOKS if link.overrides(hook))
