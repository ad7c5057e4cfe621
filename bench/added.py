"""What an installed plugin adds to a request and to an event, in instructions: `python -m bench.added`.

Counted as `bench.instructions` does it, beside a chain without the plugin. A plugin that does not touch chunks adds
nothing to an event.
"""

from __future__ import annotations

from typing import Final

from bench.instructions import counted
from relay import Chunk, Exchange, Outcome, Plugin, Reply, Sink


class Looks(Plugin):
    """Sees each request come and end, and no chunk."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        return None

    async def on_end(self, ex: Exchange) -> None:
        return None


class Through:
    """A sink that passes everything on."""

    __slots__ = ("_sink",)

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def feed(self, chunk: Chunk) -> None:
        self._sink.feed(chunk)

    def end(self, outcome: Outcome) -> None:
        self._sink.end(outcome)


class Wraps(Plugin):
    """Passes every chunk through a sink that does nothing."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return Through(sink)


PLUGINS: Final = {"on_request and on_end": Looks, "a sink that passes everything on": Wraps}


def main() -> None:
    without = counted()
    print(f"without: a request {without.request:.3f}, an event {without.event:.6f} (thousands of units)")
    for what, cls in PLUGINS.items():
        now = counted(f"bench.added:{cls.__name__}")
        request, event = now.request - without.request, now.event - without.event
        print(
            f"{what}: {request:+.3f} a request ({request / without.request:+.1%}), "
            f"{event:+.6f} an event ({event / without.event:+.2%})"
        )


if __name__ == "__main__":
    main()
