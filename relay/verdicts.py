"""Verdicts that are known already, and calls that several wait for.

A conversation is sent again with every turn of it, so most texts of a request have been judged a moment ago. What is
kept is the moderator's own verdict, by the SHA-256 of the text: the operator's policy is applied afterwards, and who
reads the memory of this process finds no text here. A text that is being judged now is not sent a second time: its call
belongs to nobody, so whoever came first may leave without failing the others. It is cancelled when the last one leaves.

Only verdicts are kept, no failures. They expire, since word lists in a service's console change without us.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from cachetools import TTLCache

from relay.moderator import Span, Verdict

T = TypeVar("T")

# Half a kilobyte each, with a reference.
MAX_VERDICTS: Final = 50_000

_ANYWHERE: Final = (Span(0, 0),)


class _Call:
    """A call under way, and how many wait for it."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.waiting = 0


class Verdicts:
    """The verdicts of one moderator. keep_s: for how long each is right, in seconds of the running loop."""

    def __init__(self, keep_s: float) -> None:
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
            return await asyncio.shield(shared.task), not first
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

    async def _run(self, key: bytes, call: Callable[[], Coroutine[Any, Any, Verdict | T]]) -> Verdict | T:
        said = await call()
        if isinstance(said, Verdict):
            self._known[key] = _kept(said)
        return said

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
