"""The hooks of a plugin and what the relay promises about them. (docs/plugins.md says it at length, with examples.)

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
  So does whatever a sink raises. It still gets its end then, but nobody hears it any more.

What a plugin promises: `feed` does not raise, does not block and does not call itself again; a sink reads no context
variable. What it holds is bounded, or it pauses the upstream (`ex.pause`). Every end that it gets it passes on, at once
or later; after that it says nothing.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Protocol, get_args, runtime_checkable

import msgspec

from relay.events import NOWHERE, Publisher
from relay.exchange import Exchange, Key, Operation, Outcome
from relay.options import Options, suggestion
from relay.pure.openai import DONE_EVENT, Chunk
from relay.pure.request import JsonObject

if TYPE_CHECKING:
    from relay.log import Logger
    from relay.metrics import Metrics
    from relay.store.port import Store
    from relay.store.pulse import Pulse

HOOKS: Final = ("lifespan", "translate", "on_request", "on_stream", "on_end")
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+")


@runtime_checkable
class Sink(Protocol):
    """Where chunks go. A plugin that cares about the way back wraps one in another."""

    def feed(self, chunk: Chunk) -> None: ...

    def end(self, outcome: Outcome) -> None: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that a plugin gives by itself.

    chunks: one body, or the events of a stream (without `[DONE]`) if the client asked for one. done: the bytes of that event.
    """

    chunks: tuple[Chunk, ...]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    done: bytes = DONE_EVENT


@dataclass(frozen=True, slots=True)
class Services:
    """What the relay lends to a plugin for its lifetime.

    folder: where relative paths of the configuration start. data: where the relay keeps files of its own; made by who needs
    it first. store: None where the configuration says `memory:`; pulse: the store's, and None as it is. events: where is told
    what an operator may want to hear of at once.
    """

    log: Logger
    metrics: Metrics
    folder: Path
    data: Path
    store: Store | None = None
    pulse: Pulse | None = None
    events: Publisher = NOWHERE


class Plugin(Options):
    """Base of all plugins. Every hook is optional; one that is not overridden costs nothing.

    needs: keys that an earlier plugin must give, or the start fails; gives: keys that it sets in `on_request`. tells: keys
    that it sets when there is something to tell. uses: keys that it can do without, but whoever gives or tells one must
    stand before it.
    serves: the operations it takes part in.
    routes: public paths that it adds, for POST: a dialect, whose requests `translate` makes chat completions of.
    needs_store: it cannot do without one that survives the process and that all processes share; `memory:` is refused.
    guards: no request may go on without it: `over_budget = "pass"` is refused.
    repeats: it answers with what those behind it have made of another reply; it is refused in front of `[[chains]]`.

    Two options every plugin has. budget_ms: how long `on_request` may take. over_budget: what becomes of a request for which
    that was not enough: "refuse" it, or "pass" it on as if the plugin were not there.
    """

    budget_ms: Annotated[int, msgspec.Meta(ge=1, le=86_400_000)] = field(default=60_000, repr=False)
    over_budget: Literal["refuse", "pass"] = field(default="refuse", repr=False)

    needs: ClassVar[tuple[Key[Any], ...]] = ()
    uses: ClassVar[tuple[Key[Any], ...]] = ()
    gives: ClassVar[tuple[Key[Any], ...]] = ()
    tells: ClassVar[tuple[Key[Any], ...]] = ()
    serves: ClassVar[frozenset[Operation]] = frozenset({"chat"})
    routes: ClassVar[tuple[str, ...]] = ()
    needs_store: ClassVar[bool] = False
    guards: ClassVar[bool] = False
    repeats: ClassVar[bool] = False

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        """Open before the `yield`, close after it. The relay is not ready before every plugin has yielded."""
        yield

    def translate(self, path: str, body: JsonObject) -> JsonObject:
        """The body of a chat completion that says what `body`, sent to `path`, says; it may be the same, edited.

        May raise Reject.
        Called when a plugin first looks at the request, so not for one whom an earlier plugin turns away. The result is
        checked as any chat request is; the reply goes out as one.
        """
        return body

    async def on_request(self, ex: Exchange) -> Reply | None:
        """Read or change the request; answer it now by a Reply; or raise `Reject`."""
        return None

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        """Wrap the way back: hold, drop, change or observe chunks. Called once a reply, before its first chunk."""
        return sink

    async def on_end(self, ex: Exchange) -> None:
        """The exchange has ended; `ex.outcome` says how."""


def hook_problems(cls: type[Plugin]) -> list[str]:
    """Sentences about what would be found out at the first request otherwise: misspelt hooks, and hooks that cannot run."""
    problems = []
    own = {
        name
        for base in cls.__mro__
        if base not in Plugin.__mro__
        for name, value in vars(base).items()
        if callable(value) and name not in HOOKS and not name.startswith("_")
    }
    for name in sorted(own):
        # A helper may be called `send`, which is not so far from `on_end`.
        meant = difflib.get_close_matches(name.lower(), HOOKS, n=1, cutoff=0.75)
        if meant or name.startswith("on_"):
            hint = f"; did you mean {meant[0]!r}?" if meant else f"; the hooks are {', '.join(HOOKS)}"
            problems.append(f"{cls.__name__}.{name} is no hook{hint}")
    for hook, awaited in (("translate", False), ("on_request", True), ("on_stream", False), ("on_end", True)):
        if inspect.iscoroutinefunction(getattr(cls, hook)) is not awaited:
            problems.append(f"{cls.__name__}.{hook} has to be {'async def' if awaited else 'def, not async def'}")
    if inspect.isasyncgenfunction(cls.lifespan):
        problems.append(f"{cls.__name__}.lifespan needs @asynccontextmanager")
    elif inspect.isgeneratorfunction(inspect.unwrap(cls.lifespan)):
        problems.append(f"{cls.__name__}.lifespan has to be async def, with @asynccontextmanager")
    problems += (problem for hook in HOOKS if (problem := _called_wrongly(cls, hook)))
    if bool(cls.routes) is (cls.translate is Plugin.translate):
        problems.append(f"{cls.__name__}: `routes` and `translate` belong together; define both, or neither")
    problems += (
        f"{cls.__name__}.routes: {route!r} is not a path; write it as in '/v2/ask'"
        for route in cls.routes
        if not _PATH.fullmatch(route)
    )
    problems += (
        f"{cls.__name__}.{name}: {key!r} is no Key; write the key itself, as in {name} = (CALLER,)"
        for name in ("needs", "uses", "gives", "tells")
        for key in getattr(cls, name)
        if not isinstance(key, Key)
    )
    problems += (
        f"{cls.__name__}.serves: unknown operation {operation!r}; {suggestion(operation, OPERATIONS)}"
        for operation in sorted(set(cls.serves) - set(OPERATIONS))
    )
    return problems


def _called_wrongly(cls: type[Plugin], hook: str) -> str:
    """What is wrong with a hook that cannot be called as it will be; "" if it can."""
    own, called = (inspect.signature(getattr(each, hook)) for each in (cls, Plugin))
    try:
        own.bind(*called.parameters)
    except TypeError:
        return (
            f"{cls.__name__}.{hook} is called as {hook}({', '.join(called.parameters)}), and is defined as {hook}{own}"
        )
    return ""
