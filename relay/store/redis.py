"""The store on a server that speaks Redis' protocol: one, behind Sentinel, a Cluster, or the embedded one.

A script is called by its digest, and sent whole to a server that does not know it. What the server refuses is told in
the words of `relay.store.port`; nothing is tried twice but that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

from relay.store.address import Address
from relay.store.link import Command, Link, Observer
from relay.store.places import Places, places
from relay.store.port import Arg, Script, StoreError, Trouble, key_name

# A script that its server does not know, and two nodes of a Cluster that point at others.
MAX_HOPS: Final = 3

# What a refusal means: by redis-py's class, else by its first word.
_CLASSES: Final[tuple[tuple[type[Exception], Trouble], ...]] = (
    (OutOfMemoryError, "full"),
    (ReadOnlyError, "readonly"),
    ((BusyLoadingError), "away"),
    (ClusterDownError, "away"),  # MASTERDOWN too
    (TryAgainError, "away"),
)
_WORDS: Final[dict[str, Trouble]] = {"MISCONF": "readonly", "NOREPLICAS": "readonly", "BUSY": "slow"}


class Unobserved:
    """For who is not interested."""

    def answered(self, commands: int, seconds: float) -> None: ...

    def failed(self, trouble: Trouble) -> None: ...


class RedisStore:
    """See `relay.store.port.Store`."""

    def __init__(self, places: Places, *, prefix: str = "relay", observer: Observer | None = None) -> None:
        self._places = places
        self._prefix = prefix
        self._observer = observer or Unobserved()
        self._loop = asyncio.get_running_loop()

    @classmethod
    def at(
        cls, address: Address, *, timeout_s: float, prefix: str = "relay", observer: Observer | None = None
    ) -> RedisStore:
        observer = observer or Unobserved()
        return cls(places(address, timeout_s, observer), prefix=prefix, observer=observer)

    @classmethod
    def on_socket(
        cls, path: str, prefix: str = "relay", *, timeout_s: float = 1.0, observer: Observer | None = None
    ) -> RedisStore:
        return cls.at(Address(kind="socket", path=path), timeout_s=timeout_s, prefix=prefix, observer=observer)

    @property
    def reached(self) -> bool:
        """Whether it has been reached since the start; of a Cluster a node."""
        return any(link.reached for link in self._places.links)

    @property
    def up(self) -> bool:
        """Whether it has been reached, and all of it is asked."""
        return self.reached and all(link.asked for link in self._places.links)

    def key(self, tag: str, *parts: str) -> str:
        return key_name(self._prefix, tag, parts)

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg] = ()) -> Awaitable[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        command = Command(script, (len(keys), *keys, *args), future, self._hear)
        link = self._places.link(keys[0])
        if link is None:
            self._fail(command, "away", acted=False)
        else:
            link.send(command)
        return future

    async def open(self) -> None:
        """Connect now. Raises what redis-py raises, or TimeoutError; it is tried again when it is needed."""
        await self._places.open()

    async def info(self) -> dict[str, str]:
        """What a server says of itself. Raises what redis-py raises."""
        return await self._places.info()

    async def aclose(self) -> None:
        """Close when what is on its way is answered, or its time is over."""
        await self._places.aclose()

    def _hear(self, link: Link, command: Command, answer: Any) -> None:
        """What the server says to a command."""
        if not isinstance(answer, Exception):
            if not command.future.done():
                command.future.set_result(answer)
            command.turn.good += 1
            return
        if command.dropped or (command.future.done() and not command.future.cancelled()):
            return
        command.hops += 1
        if command.hops <= MAX_HOPS:
            if isinstance(answer, NoScriptError):
                command.make_whole()
                link.repeat(command)
                return
            if isinstance(answer, MovedError | AskError) and self._places.redirect(command, answer):
                return
        trouble, said = _trouble(answer), _said(answer)
        if trouble == "readonly" and not said.startswith("MISCONF"):  # whose disk is full is where it was
            self._places.demoted(link)
        self._fail(command, trouble, acted=trouble == "error", detail=said)

    def _fail(self, command: Command, trouble: Trouble, *, acted: bool, detail: str = "") -> None:
        if command.fail(StoreError(trouble, acted=acted, detail=detail)):
            self._observer.failed(trouble)


def _trouble(refusal: Exception) -> Trouble:
    for cls, trouble in _CLASSES:
        if isinstance(refusal, cls):
            return trouble
    return _WORDS.get(_said(refusal).partition(" ")[0], "error")


def _said(refusal: Exception) -> str:
    """The server's words, on one line and not many."""
    return f"{getattr(refusal, 'status_code', None) or ''} {refusal}".strip().replace("\n", " ")[:200]
