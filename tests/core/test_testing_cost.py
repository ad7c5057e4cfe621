"""What `relay plugin check` prints of the cost of a plugin is measured."""

from time import perf_counter

import pytest
from subjects import EVERY

from relay import Chunk, Exchange, Plugin, Reply, Sink
from relay.testing.cost import Refused, cost
from relay.testing.witness import Wrapping

REQUEST_US = 300.0
CHUNK_US = 30.0
KEPT_BYTES = 200_000


def spin(micros: float) -> None:
    ends = perf_counter() + micros / 1e6
    while perf_counter() < ends:
        pass


class Spins(Plugin):
    """Takes its time for each request and each chunk, and keeps something of each stream."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        spin(REQUEST_US)
        return None

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Spinning(Wrapping):
            kept = b""

            def feed(self, chunk: Chunk) -> None:
                self.kept = self.kept or bytes(KEPT_BYTES)
                spin(CHUNK_US)
                super().feed(chunk)

        return Spinning(sink)


async def test_what_it_takes():
    """No less than it can have taken."""
    request, chunk, stream = await cost(Spins)
    assert request.with_it >= REQUEST_US
    assert chunk is not None
    assert chunk.with_it >= CHUNK_US
    assert stream.own >= KEPT_BYTES


async def test_one_that_does_nothing():
    request, chunk, stream = await cost(Plugin)
    assert chunk is None
    assert request.with_it > 0 < request.without
    assert stream.own < KEPT_BYTES / 100


@pytest.mark.parametrize("name", ["rejects", "answers"])
async def test_one_that_lets_nothing_through(name: str):
    with pytest.raises(Refused):
        await cost(EVERY[name])
