"""What a supervisor and a worker of its say to each other: one JSON object a line, over a pair of sockets.

The first line that a worker gets is its `Assignment`, all others are an `Order`; it sends a `Report` every second and
whenever something changes, and `News` when there is some. The end of the line says that the other one is gone. The
configuration comes this way, and not by name, so that all workers run the same, whatever has become of the file; and the way
is nobody else's, so that secrets may go it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, Generic, Literal, TypeVar

import msgspec

from relay.events import Event
from relay.pure.roster import State

# Of one line: a configuration may name thousands of models.
_LIMIT_BYTES = 2**24


class Assignment(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a worker is to do.

    config: the text of relay.toml, found at `path`. store_url, store_prefix: in place of those there. sockets: the
    descriptors of the public listener. metrics: the folder for its counts. data: for files of the relay's own.
    """

    worker: int
    config: str
    path: str
    store_url: str
    store_prefix: str
    sockets: tuple[int, ...]
    metrics: str
    data: str
    log_level: str
    reader: Literal["push", "await"]


class Order(msgspec.Struct, frozen=True, tag=True):
    """drain: refuse new requests, let open replies end within `drain_s`; or after `shutdown_delay_s` retire. retire: take no new
    connections, let the open ones end, however long they take, refuse nobody. now: end them at once."""

    do: Literal["drain", "retire", "now"]


class Report(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """How it stands with a worker. It says "leaving" when it takes no connections any more.

    reasons: why it is not ready, if it serves and is not. refused: what is wrong with its configuration; it ends. leave:
    somebody has asked it to end, who should have asked the supervisor. key_names, grants: what the admin API has to know of
    the configuration, and only those know who have built its plugins; said once (`relay.administration`).
    """

    state: State
    key_names: tuple[str, ...] | None = None
    grants: dict[str, int] = {}
    reasons: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    leave: bool = False


class News(msgspec.Struct, frozen=True, tag=True):
    """What has happened at a worker (`relay.forwarding`)."""

    events: tuple[Event, ...]


T = TypeVar("T")

TO_WORKER: Final[msgspec.json.Decoder[Assignment | Order]] = msgspec.json.Decoder(Assignment | Order)
TO_SUPERVISOR: Final[msgspec.json.Decoder[Report | News]] = msgspec.json.Decoder(Report | News)


class Line(Generic[T]):
    """One end. `T`: what comes."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.json.Decoder[T]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder

    @classmethod
    async def open(cls, end: socket.socket, decoder: msgspec.json.Decoder[T]) -> Line[T]:
        """On a connected socket, which becomes the line's."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=_LIMIT_BYTES), decoder)

    def send(self, message: msgspec.Struct) -> None:
        """Say something; to one who is gone, nothing."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")

    @property
    def backlog(self) -> int:
        """Bytes that were said, and that the other one has not taken yet."""
        return self._writer.transport.get_write_buffer_size()

    async def receive(self) -> T | None:
        """What the other one says next; None: it is gone, or not what it should be."""
        try:
            line = await self._reader.readline()
            return self._decoder.decode(line) if line.endswith(b"\n") else None
        except (ConnectionError, ValueError):  # of a line that is too long, or that says nothing known
            return None

    async def close(self) -> None:
        """After what was said has been sent."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return
