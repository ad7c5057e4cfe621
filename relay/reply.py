"""The reply of an upstream: its head, and a body that is still to come."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp.connector import Connection
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy


class Reply:
    """status, headers; content: the body, as aiohttp's parser fills it.

    Its connection is given back by itself when the body has ended. Whoever wants no more before that closes it.
    """

    __slots__ = ("_connection", "_give_back", "content", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: CIMultiDictProxy[str],
        content: StreamReader,
        connection: Connection,
        give_back: Callable[[Connection], None],
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self._connection: Connection | None = connection
        self._give_back = give_back
        content.on_eof(self._ended)

    @property
    def lost(self) -> bool:
        """Whether the connection is gone and nobody was told: neither an end nor an error will come."""
        return self._connection is not None and self._connection.transport is None

    def close(self) -> None:
        """Close the connection now. One that was given back already is not touched by it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()  # who waits for the rest is told

    def _ended(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._give_back(connection)
