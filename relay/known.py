"""What this process knows of the keys in the store, so that a request need not ask it.

What is known of a key holds as long as the pulse says, several times a second, that no key has changed since: a key that
is revoked anywhere ends here with the next beat, at the latest `FRESH_S` after the last one. Without a beat the store is
asked for each request, and when it does not answer, a key that was known to be good within the last `TRUSTED_S` still is.

Keys that there are not are remembered too, apart from the others, so that nobody can crowd these out with inventions.
Both are bounded. What cannot be a secret of a key in the store never comes here (`relay.keyring.is_issued`); one that
could be costs one question to the store if it is new, however often it is asked for at the same time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final, NamedTuple, Protocol

from relay.keyring import Admitted, Found, Keyring
from relay.store.port import StoreError

# A beat tells what was true when the server read it, at most a time-out of the store (50 ms) earlier: together 1 s.
FRESH_S: Final = 0.9
TRUSTED_S: Final = 60.0
# Even an unchanged version is not believed for ever: a failover of the store can lose what others have seen.
ASKED_EVERY_S: Final = 60.0

# A kilobyte each. Where more keys than that are in use at the same time, some requests ask the store.
MAX_KNOWN: Final = 10_000
MAX_UNKNOWN: Final = 1_000


class Pulse(Protocol):
    """How a process hears of changes. version: of all keys, at the last beat. seen_at: when that was, by the loop's clock."""

    @property
    def version(self) -> int: ...

    @property
    def seen_at(self) -> float: ...

    @property
    def up(self) -> bool: ...


class Answer(NamedTuple):
    """admitted: None if there is no such key. ended: it, or its secret, has. degraded: the store could not be asked."""

    admitted: Admitted | None
    ended: bool
    degraded: bool


class _Entry:
    """asked_at: when the store was asked, by the loop's clock. ahead_s: of the store's clock before the loop's."""

    __slots__ = ("admitted", "ahead_s", "asked_at", "trusted_at", "version")

    def __init__(self, found: Found, asked_at: float, now: float) -> None:
        self.admitted = found.admitted
        self.version = found.version
        self.ahead_s = found.now - now
        self.asked_at = self.trusted_at = asked_at


class KnownKeys:
    """See the head of this file. Belongs to the running loop; `close` ends what is under way."""

    def __init__(self, keyring: Keyring, pulse: Pulse) -> None:
        self._keyring = keyring
        self._pulse = pulse
        self._loop = asyncio.get_running_loop()
        self._known: OrderedDict[bytes, _Entry] = OrderedDict()
        self._unknown: OrderedDict[bytes, _Entry] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Entry | StoreError]] = {}

    async def find(self, digest: bytes) -> Answer:
        """The key whose secret has this digest. Raises StoreError if that is not known and cannot be asked."""
        entry = self._known.get(digest) or self._unknown.get(digest)
        if entry is not None and self._is_fresh(entry):
            (self._known if entry.admitted else self._unknown).move_to_end(digest)
            return self._answer(entry)
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = self._loop.create_task(self._ask(digest))
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        # Nobody's own: who came first may leave without failing the others.
        asked = await asyncio.shield(task)
        if not isinstance(asked, StoreError):
            return self._answer(asked)
        if entry is None or entry.admitted is None or self._loop.time() - entry.trusted_at > TRUSTED_S:
            raise asked
        return self._answer(entry, degraded=True)

    async def close(self) -> None:
        tasks = tuple(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_fresh(self, entry: _Entry) -> bool:
        """Whether the store would say the same, as far as anybody can know."""
        now, seen_at = self._loop.time(), self._pulse.seen_at
        if entry.version == self._pulse.version:
            entry.trusted_at = max(entry.trusted_at, seen_at)
            return now - seen_at <= FRESH_S and now - entry.asked_at <= ASKED_EVERY_S
        # Other than the beat said; but the store was asked after it.
        return entry.asked_at > seen_at and now - entry.asked_at <= FRESH_S

    def _answer(self, entry: _Entry, *, degraded: bool = False) -> Answer:
        admitted = entry.admitted
        ended = (
            admitted is not None and admitted.ends is not None and self._loop.time() + entry.ahead_s >= admitted.ends
        )
        return Answer(admitted, ended, degraded)

    async def _ask(self, digest: bytes) -> _Entry | StoreError:
        asked_at = self._loop.time()
        try:
            found = await self._keyring.find(digest)
        except StoreError as error:
            return error
        entry = _Entry(found, asked_at, self._loop.time())
        there, other, most = (
            (self._known, self._unknown, MAX_KNOWN) if entry.admitted else (self._unknown, self._known, MAX_UNKNOWN)
        )
        other.pop(digest, None)
        there[digest] = entry
        there.move_to_end(digest)
        if len(there) > most:
            there.popitem(last=False)
        return entry
