"""The plugins whose contract is tested: every registered one, and some that do what plugins do, well and badly.

A plugin that is registered is found here by itself; it needs a line in `CONFIGURATIONS`.
"""

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from relay.assembly import registries
from relay.errors import Reject
from relay.exchange import Exchange, Outcome
from relay.options import build
from relay.plugin import Plugin, Reply, Sink
from relay.pure.openai import Chunk
from relay.testing.conversation import CASES, Conversation, cached
from relay.testing.reply import Lent
from relay.testing.store import ScriptedStore
from relay.testing.witness import Wrapping

# A configuration with which the plugin does what it is for, for each registered one.
CONFIGURATIONS: Mapping[str, Mapping[str, object]] = {
    "audit": {"folder": tempfile.mkdtemp()},
    "auth": {"keys": [{"name": "test", "key": "sk-test"}]},
    "bingcheng": {"default_model": "gpt-4"},
    "cache": {},
    "history": {"max_tokens": 1},
    "moderation": {"moderators": [{"use": "lexicon", "words": ["forbidden"]}]},
    "otel": {"endpoint": "http://.invalid/v1/traces", "sample_ratio": 1.0},  # to be sent to nobody fails at once
    "parameters": {},
    "pii": {},
    "quota": {"grant": 1000},
    "rate_limit": {"requests_per_minute": 60},
}
# What a request carries that every one of them lets through.
HEADERS = {"Authorization": "Bearer sk-test"}

INSTALLED = registries()


def configured(name: str) -> Plugin:
    if name not in CONFIGURATIONS:
        pytest.fail(f"the plugin {name!r} is registered and has no configuration in {__file__}")
    context = INSTALLED.context(Path(), {})
    return build(INSTALLED.plugins.find(name), CONFIGURATIONS[name], name, context=context)


# A store in which every account has as much as anybody wants.
PLENTY: Mapping[str, Callable[[Sequence[str], Sequence[Any]], Any]] = {
    "ledger_reserve": lambda keys, args: [1, args[4]],
    "ledger_renew": lambda keys, args: [1, args[4]],
    "ledger_settle": lambda keys, args: [args[2], 0, 1000, 0],
    "ledger_look": lambda keys, args: [1000, 0, 0, 1000, 0, 0],
}


def lent(plugin: Plugin) -> Lent:
    return Lent(store=ScriptedStore(PLENTY) if plugin.needs_store else None)


def talk(plugin: Plugin, **changed: Any) -> Conversation:
    """A conversation that every registered plugin lets through."""
    return Conversation(plugin, headers=HEADERS, lent=lent(plugin), **changed)


# Plugins that do what plugins do, well and badly


class Wraps(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return Wrapping(sink)


class RaisesInRequest(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        raise ZeroDivisionError


class IsCancelledByItself(Plugin):
    """Waits for work of its own that was cancelled."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        waited: asyncio.Future[None] = ex.loop.create_future()
        waited.cancel()
        await waited
        return None


class AnswersNonsense(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        return {"choices": []}  # type: ignore[return-value]


class Rejects(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        raise Reject("No.", code="no")


class RejectsInStream(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        raise Reject("No.", code="no")


class RaisesInStream(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        raise ZeroDivisionError


class ForgetsItsSink(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return None  # type: ignore[return-value]


class RaisesInFeed(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Raising(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                raise ZeroDivisionError

        return Raising(sink)


class RaisesInEnd(Plugin):
    """Raises in the end, before or after it has passed it on."""

    after: bool = False

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        after = self.after

        class Raising(Wrapping):
            def end(self, outcome: Outcome) -> None:
                if after:
                    self.sink.end(outcome)
                raise ZeroDivisionError

        return Raising(sink)


class RaisesInOnEnd(Plugin):
    async def on_end(self, ex: Exchange) -> None:
        raise ZeroDivisionError


class IsCancelledInOnEnd(Plugin):
    async def on_end(self, ex: Exchange) -> None:
        raise asyncio.CancelledError


class NeverEnds(Plugin):
    async def on_end(self, ex: Exchange) -> None:
        await ex.loop.create_future()


class Answers(Plugin):
    """Gives an answer of its own, in three chunks or as one body."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        if ex.operation == "models":
            return Reply((Chunk.body(b"{}"),))
        return cached(ex.request.stream)


class Holds(Plugin):
    """Keeps every chunk to the end."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        held: list[Chunk] = []

        class Holding(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                held.append(chunk)

            def end(self, outcome: Outcome) -> None:
                for chunk in held:
                    self.sink.feed(chunk)
                self.sink.end(outcome)

        return Holding(sink)


class EndsLater(Plugin):
    """Passes the end on from a task, some turns later."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Late(Wrapping):
            def end(self, outcome: Outcome) -> None:
                async def pass_on() -> None:
                    try:
                        await asyncio.sleep(0)
                    finally:
                        self.sink.end(outcome)

                if outcome.kind == "client_gone":
                    self.sink.end(outcome)
                else:
                    ex.spawn(pass_on())

        return Late(sink)


class Spawns(Plugin):
    """Starts work that would never end."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex.spawn(asyncio.Event().wait())
        return None

    async def on_end(self, ex: Exchange) -> None:
        ex.spawn(asyncio.Event().wait())


class SwallowsTheEnd(Plugin):
    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Swallowing(Wrapping):
            def end(self, outcome: Outcome) -> None:
                pass

        return Swallowing(sink)


class GoesOnAfterTheEnd(Plugin):
    """Ends twice, and feeds after it."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Talkative(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                super().feed(chunk)
                self.last = chunk

            def end(self, outcome: Outcome) -> None:
                self.sink.end(outcome)
                self.sink.end(Outcome("completed"))
                self.sink.feed(Chunk.body(b"late"))
                ex.loop.call_soon(self.sink.feed, Chunk.body(b"later"))

        return Talkative(sink)


class StopsTwice(Plugin):
    """Has seen enough after the first chunk, and says so again."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Stopping(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                self.sink.feed(chunk)
                ex.stop(Outcome("filtered"))
                ex.stop(Outcome("internal_error"))

        return Stopping(sink)


class Pauses(Plugin):
    """Pauses at every chunk, and resumes in the same call."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Pausing(Wrapping):
            def feed(self, chunk: Chunk) -> None:
                ex.pause(self)
                self.sink.feed(chunk)
                ex.resume(self)

        return Pausing(sink)


WELL_BEHAVED: Mapping[str, Callable[[], Plugin]] = {
    "nothing": Plugin,
    "wraps": Wraps,
    "holds": Holds,
    "ends later": EndsLater,
    "spawns": Spawns,
    "pauses": Pauses,
    **{f"registered: {entry.name}": lambda name=entry.name: configured(name) for entry in INSTALLED.plugins.names()},
}
OTHERS: Mapping[str, Callable[[], Plugin]] = {
    "raises in on_request": RaisesInRequest,
    "is cancelled by itself": IsCancelledByItself,
    "answers nonsense": AnswersNonsense,
    "rejects": Rejects,
    "rejects in on_stream": RejectsInStream,
    "raises in on_stream": RaisesInStream,
    "forgets its sink": ForgetsItsSink,
    "raises in feed": RaisesInFeed,
    "raises in end": RaisesInEnd,
    "raises after end": lambda: RaisesInEnd(after=True),
    "raises in on_end": RaisesInOnEnd,
    "is cancelled in on_end": IsCancelledInOnEnd,
    "answers": Answers,
    "goes on after the end": GoesOnAfterTheEnd,
    "stops twice": StopsTwice,
}
EVERY = {**WELL_BEHAVED, **OTHERS}

every_plugin = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
every_good_plugin = pytest.mark.parametrize("make", WELL_BEHAVED.values(), ids=WELL_BEHAVED)
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
