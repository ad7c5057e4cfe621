"""The beat of a process in the store: it lives, and hears several times a second what has changed.

A beat is one script: how many relay processes live, and the version of the keys, which every change of a key raises. So
a process knows within a second that a key was revoked, or that it does not know whether one was (`seen_at`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from relay.events import NOWHERE, Publisher
from relay.log import Logger
from relay.store.port import Script, Store, StoreError

# Of the keys: the version is theirs, and a script needs all of its keys on one node.
TAG: Final = "keys"

BEAT_S: Final = 0.25
# A process that was killed counts for so long.
LIVES_MS: Final = 3_000
# A single beat that fails is no news; the fourth in a row is.
QUIET_S: Final = 1.0

_PULSE: Final = Script("pulse")


class Pulse:
    """See `beating`. version: of the keys. replicas: relay processes that live, this one included, as last known.

    seen_at: when the last beat was answered, by the loop's clock; -inf before the first. up: whether it was the last one.
    """

    def __init__(self, store: Store, log: Logger, events: Publisher = NOWHERE) -> None:
        self.version = 0
        self.replicas = 1
        self.seen_at = float("-inf")
        self.up = False
        self._store = store
        self._log = log
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._keys = (store.key(TAG, "processes"), store.key(TAG, "version"))
        self._name = secrets.token_hex(8)
        self._quiet_since: float | None = None
        self._told = False

    async def beat(self) -> None:
        """One beat. Raises nothing."""
        try:
            version, living = await self._store.run(_PULSE, self._keys, (self._name, LIVES_MS))
        except StoreError as error:
            self._missed(error)
            return
        self.version, self.replicas = version, max(1, living)
        self.seen_at = self._loop.time()
        self.up = True
        if self._told and self._quiet_since is not None:
            away_s = round(self.seen_at - self._quiet_since, 1)
            self._log.info("store back", away_s=away_s)
            self._events.publish("store", state="back", away_s=away_s)
        self._quiet_since, self._told = None, False

    async def end(self) -> None:
        """It lives no more; the others are told if they can be."""
        with suppress(StoreError):
            await self._store.run(_PULSE, self._keys, (self._name, 0))

    def _missed(self, error: StoreError) -> None:
        self.up = False
        now = self._loop.time()
        if self._quiet_since is None:
            self._quiet_since = now
        elif not self._told and now - self._quiet_since >= QUIET_S:
            self._told = True
            self._log.warning("store away", trouble=error.trouble, detail=error.detail)
            self._events.publish("store", state="away", reason=error.trouble)


@asynccontextmanager
async def beating(store: Store, log: Logger, events: Publisher = NOWHERE) -> AsyncIterator[Pulse]:
    """A pulse that beats while the block runs; its first beat has been tried when the block begins."""
    pulse = Pulse(store, log, events)
    await pulse.beat()
    task = asyncio.create_task(_beat(pulse))
    try:
        yield pulse
    finally:
        task.cancel()
        await asyncio.wait((task,))
        await pulse.end()


async def _beat(pulse: Pulse) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        await pulse.beat()
