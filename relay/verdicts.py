"""Verdicts that are known already, and calls that several wait for.

A conversation is sent again with every turn of it, so most texts of a request have been judged a moment ago. What is
kept is the moderator's own verdict, by the SHA-256 of the text: the operator's policy is applied afterwards, and who
reads the memory of this process finds no text here. A text that is being judged now is not sent a second time: its call
belongs to nobody, so whoever came first may leave without failing the others. It is cancelled when the last one leaves.

With a store they are kept there too, for all processes (`SharedVerdicts`): who does not know a text asks it before the
moderator, and waits no longer for it than its time-out. What goes wrong there is as if nothing were known.

Only verdicts are kept, no failures. They expire, since word lists in a service's console change without us.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
from cachetools import TTLCache

from relay.moderator import Moderator, Span, Verdict
from relay.store.port import Script, Store, StoreError

T = TypeVar("T")

# Half a kilobyte each, with a reference.
MAX_VERDICTS: Final = 50_000

_ANYWHERE: Final = (Span(0, 0),)

GET: Final = Script("verdicts_get")
KEEP: Final = Script("verdicts_keep")

_decode: Final = msgspec.msgpack.Decoder(Verdict).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class SharedVerdicts:
    """The verdicts of one moderator in the store, as all processes know them that ask it on the same account with the same
    options.

    keep_s: for how long each is right, by the store's clock. A text is no more than part of a hash here.
    """

    def __init__(self, store: Store, moderator: Moderator, keep_s: float) -> None:
        self._store = store
        self._keep_ms = round(keep_s * 1000)
        cls = type(moderator)
        # The account too: what its owner has set up at the service is no option here, and secrets do not show.
        asked = f"{cls.__module__}.{moderator!r} {moderator.account}"
        self._moderator = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).digest()
        self._sent: set[asyncio.Future[Any]] = set()

    async def known(self, text: bytes) -> Verdict | None:
        """What was said of the text with this hash. Raises nothing."""
        try:
            kept = await self._store.run(GET, (self._key(text),))
            return _kept(_decode(kept)) if kept is not None else None
        except (StoreError, ValueError, RecursionError):  # of msgspec a DecodeError or a UnicodeDecodeError
            return None

    def keep(self, text: bytes, verdict: Verdict) -> None:
        """Nobody waits for it."""
        sent = asyncio.ensure_future(self._store.run(KEEP, (self._key(text),), (_encode(verdict), self._keep_ms)))
        self._sent.add(sent)
        sent.add_done_callback(self._was_sent)

    async def close(self) -> None:
        if self._sent:
            await asyncio.wait(self._sent)

    def _was_sent(self, sent: asyncio.Future[Any]) -> None:
        self._sent.discard(sent)
        if not sent.cancelled():
            sent.exception()  # has been seen

    def _key(self, text: bytes) -> str:
        return self._store.key("verdict:" + hashlib.sha256(self._moderator + text).hexdigest())


class _Call:
    """A call under way, and how many wait for it."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.waiting = 0


class Verdicts:
    """The verdicts of one moderator. keep_s: for how long each is right, in seconds of the running loop.

    shared: those of all processes, if they share them; closed with this.
    """

    def __init__(self, keep_s: float, shared: SharedVerdicts | None = None) -> None:
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._known: TTLCache[bytes, Verdict] = TTLCache(MAX_VERDICTS, keep_s, self._loop.time)
        self._calls: dict[bytes, _Call] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def ask(self, text: str, call: Callable[[], Coroutine[Any, Any, Verdict | T]]) -> tuple[Verdict | T, bool]:
        """What `call` says of the text, and whether that was known or asked by somebody else.

        `call` may say something else than a verdict, which is not kept.
        """
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        known = self._known.get(key)
        if known is not None:
            return known, True
        shared = self._calls.get(key)
        first = shared is None
        if shared is None:
            shared = self._calls[key] = _Call(self._loop.create_task(self._run(key, call)))
            self._tasks.add(shared.task)
            shared.task.add_done_callback(partial(self._ended, key))
        shared.waiting += 1
        try:
            said, known = await asyncio.shield(shared.task)
            return said, known or not first
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                # Whoever comes now must not wait for a call that is being cancelled.
                self._forget(key, shared.task)
                shared.task.cancel()

    async def close(self) -> None:
        """Cancel the calls under way, and wait for their ends."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._shared is not None:
            await self._shared.close()

    async def _run(self, key: bytes, call: Callable[[], Coroutine[Any, Any, Verdict | T]]) -> tuple[Verdict | T, bool]:
        """What is said of a text, and whether the store knew it."""
        if self._shared is not None:
            known = await self._shared.known(key)
            if known is not None:
                self._known[key] = known
                return known, True
        said = await call()
        if isinstance(said, Verdict):
            self._known[key] = kept = _kept(said)
            if self._shared is not None:
                self._shared.keep(key, kept)
        return said, False

    def _ended(self, key: bytes, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._forget(key, task)

    def _forget(self, key: bytes, task: asyncio.Task[Any]) -> None:
        """This call is not to be shared any more; there may be a newer one of the same text."""
        shared = self._calls.get(key)
        if shared is not None and shared.task is task:
            del self._calls[key]


def _kept(verdict: Verdict) -> Verdict:
    """What has to be known of it later: not where something stands, but whether that was told."""
    findings = {replace(finding, spans=_ANYWHERE if finding.spans else ()): None for finding in verdict.findings}
    return replace(verdict, findings=tuple(findings))
