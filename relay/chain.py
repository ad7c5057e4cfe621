"""The chain: plugins in the order of the file, compiled once into one tuple for each phase.

A plugin without a hook is not in that hook's tuple, so it does not exist there. On the way back the sinks of the plugins
that a request has passed are folded over the writer; `_Layer` keeps the promises between two of them (end once, errors
named) at the cost of one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from relay.errors import PluginError, RelayError
from relay.exchange import Exchange, Key, Operation, Outcome
from relay.options import ConfigError
from relay.plugin import HOOKS, Plugin, Reply, Sink, misspelt_hook
from relay.pure.openai import Chunk

# A plugin that has not settled its affairs by then is left behind, and named in the log.
END_TIMEOUT_S = 5.0

OnError = Callable[[PluginError, BaseException], None]


@dataclass(frozen=True, slots=True)
class Link:
    """A plugin under the name that it has in this chain."""

    name: str
    plugin: Plugin

    def overrides(self, hook: str) -> bool:
        return getattr(type(self.plugin), hook) is not getattr(Plugin, hook)


class Chain:
    """Plugins under their names. Raises ConfigError if they do not fit together."""

    def __init__(self, plugins: Iterable[tuple[str, Plugin]], on_error: OnError | None = None) -> None:
        """`on_error` is told what a plugin raised that is not ours, for the log."""
        self.links = tuple(Link(name, plugin) for name, plugin in plugins)
        self._on_error = on_error or (lambda error, cause: None)
        _check(self.links)
        self._requests: dict[Operation, tuple[Link, ...]] = {
            operation: tuple(link for link in self.links if operation in link.plugin.serves and _takes_part(link))
            for operation in ("chat", "models")
        }
        self._streams = frozenset(link.name for link in self.links if link.overrides("on_stream"))
        self._reads = frozenset(link.name for link in self.links if link.overrides("on_request"))

    async def enter(self, ex: Exchange, entered: list[Link]) -> Reply | None:
        """Take the request through the chain: an early answer, or None if the upstream is to be asked.

        `entered` is filled with the plugins that the request has passed, also when this raises.
        """
        for link in self._requests[ex.operation]:
            reply = None
            if link.name in self._reads:
                try:
                    reply = await link.plugin.on_request(ex)
                except RelayError:
                    raise
                except Exception as cause:
                    raise self._named(link, "on_request", cause) from cause
            entered.append(link)
            if reply is not None:
                return reply
        return None

    def wrap(self, ex: Exchange, entered: Sequence[Link], sink: Sink) -> Sink:
        """The way back: the last plugin that the request met sees a chunk first.

        For an early answer `entered` is without the plugin that gave it: it does not see its own answer.
        """
        for link in entered:
            if link.overrides("on_stream"):
                try:
                    wrapped = link.plugin.on_stream(ex, sink)
                except RelayError:
                    raise
                except Exception as cause:
                    raise self._named(link, "on_stream", cause) from cause
                if wrapped is not sink:
                    sink = _Layer(link, ex, wrapped, sink, self._named)
        return sink

    async def leave(self, ex: Exchange, entered: Sequence[Link]) -> None:
        """`on_end` for each plugin that was entered, the last one first. Never raises what a plugin raised."""
        for link in reversed(entered):
            if link.overrides("on_end"):
                try:
                    async with asyncio.timeout(END_TIMEOUT_S):
                        await link.plugin.on_end(ex)
                except Exception as cause:  # noqa: BLE001 - named and handed on; the next plugin still has its end
                    self._named(link, "on_end", cause)

    def _named(self, link: Link, hook: str, cause: BaseException) -> PluginError:
        error = PluginError(link.name, hook)
        self._on_error(error, cause)
        return error


class _Layer:
    """A plugin's sink as its neighbours see it: ends once, never raises."""

    __slots__ = ("_below", "_broken", "_ended", "_ex", "_link", "_named", "_sink")

    def __init__(
        self,
        link: Link,
        ex: Exchange,
        sink: Sink,
        below: Sink,
        named: Callable[[Link, str, BaseException], PluginError],
    ) -> None:
        self._link = link
        self._ex = ex
        self._sink = sink
        self._below = below
        self._named = named
        self._ended = False
        self._broken: PluginError | None = None

    def feed(self, chunk: Chunk) -> None:
        if self._ended or self._broken:
            return
        try:
            self._sink.feed(chunk)
        except Exception as cause:  # noqa: BLE001 - named, and it ends the reply
            self._fail("feed", cause)

    def end(self, outcome: Outcome) -> None:
        if self._ended:
            return
        self._ended = True
        if self._broken is None:
            try:
                self._sink.end(outcome)
            except Exception as cause:  # noqa: BLE001 - named; the end is passed on in its place
                self._fail("end", cause)
        if self._broken is not None:
            self._below.end(Outcome("internal_error", self._broken))

    def _fail(self, hook: str, cause: Exception) -> None:
        self._broken = self._named(self._link, hook, cause)
        self._ex.stop(Outcome("internal_error", self._broken))


def _takes_part(link: Link) -> bool:
    return any(link.overrides(hook) for hook in ("on_request", "on_stream", "on_end"))


def _check(links: Sequence[Link]) -> None:
    given: set[Key[object]] = set()
    later = {key for link in links for key in link.plugin.gives}
    problems = []
    for link in links:
        misspelt = misspelt_hook(type(link.plugin))
        if misspelt:
            problems.append(f"plugin {link.name!r}: {misspelt}")
        for key in link.plugin.needs:
            if key not in given:
                hint = "a later one does; move it up" if key in later else "add a plugin that does"
                problems.append(f"plugin {link.name!r} needs {key.name!r} and no plugin before it gives it: {hint}")
        given.update(link.plugin.gives)
    if problems:
        raise ConfigError(*problems)


def hooks(link: Link) -> tuple[str, ...]:
    """The hooks that a plugin has, for `relay check`."""
    return tuple(hook for hook in HOOKS if link.overrides(hook))
