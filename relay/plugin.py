"""The page a plugin author reads: the hooks of a plugin and what the relay promises about them.

A plugin is its configuration. Its annotated fields are its options in `relay.toml`, with their types and defaults;
unknown options and misspelt hooks stop the start with a suggestion.

    class Shout(Plugin):
        "Ends every answer with an exclamation mark."
        mark: str = "!"

        async def on_request(self, ex): ...
        def on_stream(self, ex, sink): ...

What the relay promises:

* Requests meet plugins in the order of the file, chunks and ends in reverse order.
* `on_end` runs once for every plugin whose `on_request` returned, whatever happened afterwards: completed, refused by a
  later plugin, upstream failed, client gone, drained. It is shielded from cancellation, bounded in time, and an error in
  it never hides the first one.
* `end(outcome)` reaches every sink exactly once, always from the upstream's side, also when the client left. A sink
  passes it on after what it holds.
* A plugin that answers early is still seen by the plugins before it: their sinks get its answer.
* A reply that is not streamed passes as one chunk, so a plugin is written once.
* What a plugin raises that is no `RelayError` becomes a `PluginError` that names it: a 500, or an error in the stream.

What a plugin promises: `feed` does not raise, does not block and does not call itself again; a sink reads no context
variable. What it holds is bounded, or it pauses the upstream (`ex.pause`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from relay.exchange import Exchange, Key, Operation, Outcome
from relay.options import Options, nearest
from relay.pure.openai import Chunk

if TYPE_CHECKING:
    from relay.log import Logger
    from relay.metrics import Metrics

HOOKS = ("lifespan", "on_request", "on_stream", "on_end")


class Sink(Protocol):
    """Where chunks go. A plugin that cares about the way back wraps one in another."""

    def feed(self, chunk: Chunk) -> None: ...

    def end(self, outcome: Outcome) -> None: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that a plugin gives by itself.

    chunks: one body, or the events of a stream (without `[DONE]`) if the client asked for one.
    """

    chunks: tuple[Chunk, ...]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Services:
    """What the relay lends to a plugin for its lifetime.

    folder: where relative paths of the configuration start.
    """

    log: Logger
    metrics: Metrics
    folder: Path


class Plugin(Options):
    """Base of all plugins. Every hook is optional; one that is not overridden costs nothing.

    needs: keys that an earlier plugin must give, or the start fails; gives: keys that it sets in `on_request`.
    serves: the operations it takes part in.
    """

    needs: ClassVar[tuple[Key[Any], ...]] = ()
    gives: ClassVar[tuple[Key[Any], ...]] = ()
    serves: ClassVar[frozenset[Operation]] = frozenset({"chat"})

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        """Open before the `yield`, close after it. The relay is not ready before every plugin has yielded."""
        yield

    async def on_request(self, ex: Exchange) -> Reply | None:
        """Read or change the request; answer it now by a Reply; or raise `Reject`."""
        return None

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        """Wrap the way back: hold, drop, change or observe chunks. Called once a reply, before its first chunk."""
        return sink

    async def on_end(self, ex: Exchange) -> None:
        """The exchange has ended; `ex.outcome` says how."""


def misspelt_hook(cls: type[Plugin]) -> str | None:
    """A sentence about a method that looks like a hook and is none; None if there is none."""
    own = {
        name
        for base in cls.__mro__
        if base not in Plugin.__mro__
        for name, value in vars(base).items()
        if callable(value) and name not in HOOKS and not name.startswith("_")
    }
    for name in sorted(own):
        meant = nearest(name, HOOKS)
        if meant or name.startswith("on_"):
            hint = f"; did you mean {meant!r}?" if meant else f"; the hooks are {', '.join(HOOKS)}"
            return f"{cls.__name__}.{name} is no hook{hint}"
    return None
